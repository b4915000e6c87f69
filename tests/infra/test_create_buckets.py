"""Law of making buckets: what is missing is made, what is there is left alone."""

import pytest

from infra.create_buckets import create_bucket, main


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)


def test_a_second_run_changes_nothing(store: None, capsys: pytest.CaptureFixture[str]) -> None:
    import boto3
    from moto import mock_aws

    with mock_aws():
        assert create_bucket("mlflow")
        boto3.client("s3").put_object(Bucket="mlflow", Key="kept", Body=b"1")
        main(["mlflow", "dvc"])
        assert capsys.readouterr().out == "mlflow: there already\ndvc: made\n"
        assert boto3.client("s3").list_objects_v2(Bucket="mlflow")["KeyCount"] == 1
