"""The object tier against a real S3 server: `make test-s3`. Not part of `make test`, which has no such server."""
