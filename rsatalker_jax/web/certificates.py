"""TLS for pages on a local network: a certificate that there is, or one of an authority that is made for the purpose."""

import contextlib
import datetime
import ipaddress
import os
import pathlib
import ssl
from collections.abc import Sequence

from rsatalker_jax.errors import InputError

_DAYS = 397  # Browsers take none that is valid for longer than some 400 to 825.
_FILES = ("authority.pem", "certificate.pem", "key.pem")


def load_context(certificate: str, key: str) -> ssl.SSLContext:
  """For a server.

  Args:
    certificate: PEM, with those between it and its authority.
    key: its private key, PEM, without a password.

  Raises:
    InputError: they cannot be read, or are not of one another.
  """
  for flag, path in (("--certificate", certificate), ("--private_key", key)):
    if not pathlib.Path(path).is_file():
      raise InputError(flag, "", f"no file {path}", "a file in PEM's form")
  context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
  try:
    # Without a function that gives the password the terminal would be asked for it.
    context.load_cert_chain(certificate, key, password=lambda: "")
  except (OSError, ValueError) as error:
    found = getattr(error, "reason", None) or error
    raise InputError(certificate, "", f"{found}, with {key}", "a certificate and its private key, without a password, in PEM's form") from None
  return context


def make_certificates(folder: str, names: Sequence[str]) -> tuple[str, str, str]:
  """Paths of an authority's certificate, a certificate for `names` and its key; they are made where the folder has none.

  The authority's own key is never stored: nobody can make another certificate that those who trust it would take.

  Raises:
    InputError: trustme is not installed; the folder cannot be written; or it has those of other names, or of days that are over.
  """
  try:
    import trustme
    from cryptography import x509
  except ImportError as error:
    raise InputError("--tls", "", error, "it installed: pip install trustme, or rsatalker-jax[live-tls]") from None
  place = pathlib.Path(folder)
  paths = authority_path, certificate_path, key_path = [place / name for name in _FILES]
  try:
    if any(path.exists() for path in paths):
      _check_made(x509, paths, names)
    else:
      place.mkdir(parents=True, exist_ok=True)
      authority = trustme.CA(organization_name="rsatalker-jax", organization_unit_name="a local page")
      now = datetime.datetime.now(datetime.UTC)
      made = authority.issue_cert(*names, not_after=now + datetime.timedelta(days=_DAYS))
      chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
      for path, content in zip(paths, (authority.cert_pem.bytes(), chain, made.private_key_pem.bytes()), strict=True):
        with contextlib.suppress(FileNotFoundError):
          path.with_suffix(".part").unlink()
        with open(os.open(path.with_suffix(".part"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
          file.write(content)
        path.with_suffix(".part").replace(path)
  except OSError as error:
    raise InputError(f"--tls={folder}", "", error, "a folder that can be written") from None
  return str(authority_path), str(certificate_path), str(key_path)


def _check_made(x509, paths: Sequence[pathlib.Path], names: Sequence[str]) -> None:
  again = "a folder without them, to make new ones"
  for path in paths:
    if not path.exists():
      raise InputError(path, "", "none, but others beside it", again)
  try:
    found = x509.load_pem_x509_certificate(paths[1].read_bytes())
    has = {str(name.value) for name in found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value}
  except (ValueError, x509.ExtensionNotFound) as error:
    raise InputError(paths[1], "", error, "a certificate in PEM's form") from None
  if not set(map(_as_named, names)) <= has:
    raise InputError(paths[1], "", f"a certificate for {', '.join(sorted(has))}", f"one for {', '.join(names)}, or {again}")
  if found.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
    raise InputError(paths[1], "", f"one that was valid until {found.not_valid_after_utc:%Y-%m-%d}", again)


def _as_named(name: str) -> str:
  with contextlib.suppress(ValueError):
    return str(ipaddress.ip_address(name))
  return name
