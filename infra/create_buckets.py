"""Make the buckets of the object store, as far as they are missing.

    python -m infra.create_buckets mlflow dvc

Address and credentials are boto3's own: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
"""

import sys
from collections.abc import Sequence


def main(names: Sequence[str]) -> None:
    for name in names:
        print(f"{name}: {'made' if create_bucket(name) else 'there already'}")


def create_bucket(name: str) -> bool:
    """Whether it had to be made. Asked first: some stores answer a second creation of one's own bucket with an error."""
    import boto3

    client = boto3.client("s3")
    if name in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        return False
    client.create_bucket(Bucket=name)
    return True


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m infra.create_buckets BUCKET...")
    main(sys.argv[1:])
