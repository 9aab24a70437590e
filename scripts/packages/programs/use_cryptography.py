"""cryptography: hashes, ciphers, keys, signatures, a certificate."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

import datetime

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def main(n):
    kept = []
    cipher = AESGCM(bytes(16))
    for i in range(50 * n):
        digest = hashes.Hash(hashes.SHA256())
        digest.update(b'%d' % i)
        kept.append(cipher.encrypt(bytes(12), digest.finalize() * 9, None))
        try:
            cipher.decrypt(bytes(12), kept[-1][1:], None)
        except InvalidTag:
            pass
    key = ec.derive_private_key(12345, ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, 'name')])
    day = datetime.datetime(2024, 1, 1)
    certificate = x509.CertificateBuilder(
        name, name, key.public_key(), 1, day, day.replace(year=2025)).sign(
        key, hashes.SHA256())
    text = certificate.public_bytes(serialization.Encoding.PEM)
    return kept, certificate, x509.load_pem_x509_certificate(text).subject
