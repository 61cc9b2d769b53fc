"""What positions read along one side: hand-worked intervals, periods, and branches that do not march in step."""

from fractions import Fraction

import pytest

from spaceless.reach import Reach, Reading, interpolated, nearest, pieces, transposed, union, window

IMAGE = Reach()


def intervals(reach, count):
    return [reach.at(i) for i in range(count)]


def through(*readings):
    reach = IMAGE
    for reading in readings:
        reach = reach.through(reading)
    return reach


def test_the_image_reads_itself():
    assert (IMAGE.size, IMAGE.stride, intervals(IMAGE, 3)) == (1, 1, [(0, 0), (1, 1), (2, 2)])


def test_a_chain_by_hand():
    vgg = through(window(3, 1, 1), window(3, 1, 1), window(2, 2), window(3, 1, 1))
    assert (vgg.size, vgg.stride, vgg.first) == (10, 2, (-4,))
    assert intervals(vgg, 2) == [(-4, 5), (-2, 7)]


def test_dilation_skips_pixels_but_spans_them():
    assert through(window(3, 1, 2, 2)).at(0) == (-2, 2)
    assert through(window(3, 2, 4, 4)).at(1) == (-2, 6)


def test_nearest_neighbours_share_what_they_read():
    reach = through(window(4, 4), nearest(Fraction(1, 2)))
    assert intervals(reach, 4) == [(0, 3), (0, 3), (4, 7), (4, 7)]
    assert (reach.size, reach.stride) == (4, 2)
    assert intervals(reach.through(window(3, 1, 1)), 3) == [(-4, 3), (0, 7), (0, 7)]
    assert through(nearest(Fraction(1, 2)), window(2, 2)) == IMAGE  # there and back


def test_exact_nearest_reads_the_middle():
    assert intervals(through(nearest(Fraction(3))), 2) == [(0, 0), (3, 3)]
    assert intervals(through(nearest(Fraction(3), exact=True)), 2) == [(1, 1), (4, 4)]


@pytest.mark.parametrize(("reading", "read"), [
    (interpolated(Fraction(1, 2)), [(-1, 0), (0, 1), (0, 1), (1, 2)]),  # places -1/4, 1/4, 3/4, 5/4
    (interpolated(Fraction(1, 3), corners=True), [(0, 0), (0, 1), (0, 1), (1, 1)]),
    (interpolated(Fraction(1, 2), taps=4), [(-2, 1), (-1, 2), (-1, 2), (0, 3)]),
    (interpolated(Fraction(1)), [(0, 0), (1, 1), (2, 2), (3, 3)]),
])
def test_linear_and_cubic_resizing(reading, read):
    assert intervals(through(reading), 4) == read


@pytest.mark.parametrize(("before", "after"), [(7, 3), (6, 3), (5, 7), (8, 1), (4, 4)])
def test_adaptive_pooling_as_pytorch_cuts_it(before, after):
    reach = through(pieces(before, after))
    assert intervals(reach, after) == [(i * before // after, -(-(i + 1) * before // after) - 1) for i in range(after)]
    assert reach.stride == Fraction(before, after)


def test_transposed_convolutions():
    reach = through(transposed(4, 2, 1, 1))
    assert intervals(reach, 4) == [(-1, 0), (0, 1), (0, 1), (1, 2)]
    assert transposed(2, 3, 0, 1) is None  # every third position reads nothing


def test_the_hull_of_branches_with_other_centres():
    both = union([through(window(3, 1, 1)), through(window(2, 1, 3))], 8)
    assert (both.at(0), both.size, both.stride, both.aligned) == ((-3, 1), 5, 1, True)


def test_branches_of_other_strides_are_right_for_the_positions_that_there_are():
    slow, fast = through(window(2, 2)), through(window(3, 3))
    both = union([slow, fast], 4)
    assert not both.aligned
    assert intervals(both, 4) == [(0, 2), (2, 5), (4, 8), (6, 11)]
    assert both.size == 6
    assert not both.through(window(3, 1, 1)).aligned


def test_one_position_for_all():
    assert intervals(through(window(3, 1, 1), Reading(lambda _: [0], 1, 0)), 3) == [(-1, 1)] * 3
