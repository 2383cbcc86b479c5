"""Signed with a certificate made here, and read back by C2PA's own library."""

import base64
import datetime
import io
import json
from concurrent.futures import ThreadPoolExecutor

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from cdm_serve.api.encode import encode_image
from cdm_serve.api.signing import signatory_of
from cdm_serve.errors import StartError
from cdm_serve.settings import Settings

KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}


def certificate(subject, key, issuer, issuer_key, *, root):
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    names = [
        x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
        for name in (subject, issuer)
    ]
    ciphers = ["key_encipherment", "data_encipherment", "encipher_only", "decipher_only"]
    uses = dict.fromkeys(["content_commitment", "key_agreement", *ciphers], False)
    use = x509.KeyUsage(digital_signature=not root, key_cert_sign=root, crl_sign=root, **uses)
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    mail = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
    made = x509.CertificateBuilder(*reversed(names), key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - day).not_valid_after(now + day)
    made = made.add_extension(x509.BasicConstraints(root, None), critical=True)
    made = made.add_extension(use, critical=True).add_extension(issued_by, critical=False)
    made = made if root else made.add_extension(mail, critical=False)
    algorithm = None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return made.sign(issuer_key, algorithm).public_bytes(Encoding.PEM)


def files(folder, key):
    """A chain that C2PA allows, and the key: as settings."""
    root = KEYS["P-256"]()
    chain = certificate("a studio", key, "a root", root, root=False)
    (folder / "chain.pem").write_bytes(
        chain + certificate("a root", root, "a root", root, root=True)
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    return {"c2pa_certificate": folder / "chain.pem", "c2pa_key": folder / "key.pem"}


def read(file, output_format):
    reader = c2pa.Reader(f"image/{output_format}", io.BytesIO(file))
    assert reader.get_validation_state() == "Valid"
    manifest = reader.get_active_manifest()
    (actions,) = [each for each in manifest["assertions"] if each["label"] == "c2pa.actions.v2"]
    (action,) = actions["data"]["actions"]
    source = action["digitalSourceType"].rpartition("/")[2]
    return manifest["signature_info"]["issuer"], action["softwareAgent"]["name"], source


@pytest.mark.parametrize("kind", KEYS)
def test_every_format_is_signed_with_every_kind_of_key(tmp_path, kind):
    signatory = signatory_of(Settings(**files(tmp_path, KEYS[kind]())))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    for output_format in ("png", "jpeg", "webp"):
        file = encode_image(pixels, output_format, 90, {"seed": "7"})
        for edit, source in ((False, "trained"), (True, "compositeWithTrained")):
            signed = signatory.sign(file, output_format, "tiny", edit=edit)
            assert read(signed, output_format) == (
                *("a studio", "tiny"),
                f"{source}AlgorithmicMedia",
            )
            before, after = (np.asarray(Image.open(io.BytesIO(each))) for each in (file, signed))
            assert np.array_equal(before, after)
            assert len(signed) < len(file) + 8192


def test_a_changed_picture_is_found_out(tmp_path):
    signatory = signatory_of(Settings(**files(tmp_path, KEYS["P-256"]())))
    signed = signatory.sign(encode_image(np.zeros((8, 8, 3), np.uint8), "jpeg", 90, {}), "jpeg", "")
    changed = signed[:-4] + bytes([signed[-4] ^ 1]) + signed[-3:]
    reader = c2pa.Reader("image/jpeg", io.BytesIO(changed))
    assert reader.get_validation_state() == "Invalid"


def test_settings_that_do_not_do_are_one_line(tmp_path):
    key = KEYS["P-256"]()
    good = files(tmp_path, key)
    own = tmp_path / "own.pem"
    own.write_bytes(certificate("me", key, "me", key, root=True))
    for settings, said in (
        ({"c2pa_key": good["c2pa_key"]}, "one needs the other"),
        (good | {"c2pa_certificate": own}, "c2pa-certificate.*self-signed"),
        (good | {"c2pa_key": own}, "c2pa-key"),
        (good | {"c2pa_key": tmp_path / "none"}, "No such file"),
    ):
        with pytest.raises(StartError, match=said):
            signatory_of(Settings(**settings))
    assert signatory_of(Settings()) is None


def test_pictures_of_a_server_are_signed_and_previews_are_not(start, server, tmp_path):
    given = files(tmp_path, KEYS["P-256"]())
    options = [f"--{name.replace('_', '-')}={path}" for name, path in given.items()]
    gateway = start("--triton", server.triton_address(), *options)
    gateway.wait_ready()
    with ThreadPoolExecutor(8) as pool:
        made = [*pool.map(lambda _: gateway.picture("a fox", 7, 4), range(8))]
    assert {read(file, "png") for file in made} == {
        ("a studio", "tiny", "trainedAlgorithmicMedia"),
    }
    # What was signed here can come in again.
    (edited,) = gateway.edit(made[0], prompt="an owl").json()["data"]
    source = "compositeWithTrainedAlgorithmicMedia"
    assert read(base64.b64decode(edited["b64_json"]), "png")[2] == source
    events = gateway.generate(prompt="a fox", stream=True, partial_images=1).text
    data = [line[6:] for line in events.splitlines() if line.startswith("data: ")]
    preview, picture = (base64.b64decode(json.loads(each)["b64_json"]) for each in data)
    assert (b"c2pa" in preview, b"c2pa" in picture) == (False, True)
    assert gateway.interrupt() == 0
