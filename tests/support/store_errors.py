"""Errors of stores, as their libraries raise them."""


def client_error(code: str, status: int) -> Exception:
    """An answer of S3 as botocore raises it."""
    from botocore.exceptions import ClientError

    return ClientError(
        {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject"
    )
