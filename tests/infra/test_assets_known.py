from segmint.infra.assets import ASSETS


def test_every_asset_has_a_full_hash_a_license_and_a_source() -> None:
    for name, asset in ASSETS.items():
        assert name == asset.name
        assert len(bytes.fromhex(asset.sha256)) == 32
        assert asset.license
        assert asset.package or asset.url
