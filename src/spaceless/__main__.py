"""`python -m spaceless`, which is also what `torchrun -m` needs."""

from spaceless.cli import main

main()
