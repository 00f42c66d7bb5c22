"""`python -m fastcnn` is the `fastcnn` command."""

from fastcnn.cli import main

if __name__ == "__main__":
    main()
