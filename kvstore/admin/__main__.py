"""`python -m kvstore.admin`, the same as `store-admin`."""

from kvstore.admin.cli import main

if __name__ == "__main__":
    main(prog_name="store-admin")
