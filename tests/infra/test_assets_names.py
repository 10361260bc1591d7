import pytest

from segmint.infra.assets import AssetError, absolute_name, plain_name, resolve


@pytest.mark.parametrize(
    "address",
    ["https://me:hunter2@host/own.pt", "https://host/own.pt?X-Amz-Signature=hunter2", "http://h/x.pt?sig=hunter2"],
)
def test_a_web_address_with_a_credential_is_refused_and_not_repeated(address: str) -> None:
    for door in (absolute_name, resolve):
        with pytest.raises(AssetError, match="contains a credential") as caught:
            door(f"{address}#sha256={'0' * 64}")
        assert "hunter2" not in str(caught.value)


def test_the_name_of_weights_is_that_of_the_file() -> None:
    for given in ("own.pt", "/a/own.pt", "s3://b/a/own.pt", f"https://h/a/own.pt?x=/y#sha256={'0' * 64}"):
        assert plain_name(given) == "own.pt"
