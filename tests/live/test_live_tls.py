"""https of the live page: certificates that are made, found again or refused; who is let in; and a conversation over wss in a browser
that knows the machine by a name, as others on a network do."""

import asyncio
import base64
import contextlib
import datetime
import hashlib
import socket
import ssl
import time

import aiohttp
import numpy as np
import pytest

from live import probe
from media.browser import BROWSER, OpenPage
from rsatalker_jax.commands.live import hold_conversations
from rsatalker_jax.errors import InputError
from rsatalker_jax.live.protocol import make_frame, parse_answer
from rsatalker_jax.live.server import LiveServer
from rsatalker_jax.live.worker import Worker
from rsatalker_jax.web import certificates
from served import serving_in_thread

trustme = pytest.importorskip("trustme")
NAME = "my-laptop.test"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tls") / "new"
  return folder, certificates.make_certificates(str(folder), [NAME, "192.168.1.5"])


@pytest.fixture(scope="module")
def port(made):
  _, (_, certificate, key) = made
  worker = Worker(probe.ProbeEngine, 0, 2, own_process=False)
  context = certificates.load_context(certificate, key)
  try:
    with serving_in_thread(lambda origins: LiveServer(worker, "token", origins).make_app(), NAME, context) as port:
      yield port
  finally:
    worker.stop()


def read_certificate(path):
  from cryptography import x509

  return x509.load_pem_x509_certificate(path.read_bytes())


def test_what_is_made(made):
  folder, paths = made
  assert [path.rpartition("/")[2] for path in paths] == ["authority.pem", "certificate.pem", "key.pem"]
  assert sorted(path.name for path in folder.iterdir()) == sorted(path.rpartition("/")[2] for path in paths)
  assert (folder / "key.pem").stat().st_mode & 0o077 == 0
  # The authority's own key is nowhere: the one key there belongs to the certificate.
  assert (folder / "key.pem").read_bytes().count(b"PRIVATE") == 2 and b"PRIVATE" not in (folder / "authority.pem").read_bytes()
  certificate = read_certificate(folder / "certificate.pem")
  left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
  assert 390 < left.days < 398
  before = [open(path, "rb").read() for path in paths]
  assert certificates.make_certificates(str(folder), ["192.168.1.5"]) == paths  # Found again, and the same.
  assert [open(path, "rb").read() for path in paths] == before


def test_a_client_that_trusts_the_authority_alone(made, port):
  folder, _ = made

  async def main(context, name=NAME, origin=None):
    url = f"https://{name}:{port}"

    class Resolver(aiohttp.abc.AbstractResolver):
      async def resolve(self, host, port=0, family=socket.AF_INET):
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": family, "proto": 0, "flags": 0}]

      async def close(self):
        pass

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, resolver=Resolver())) as session:
      async with session.get(f"{url}/token/state") as response:
        status = response.status
      async with session.ws_connect(f"{url}/token/socket", headers={"Origin": origin or url}) as talk:
        assert (await talk.receive_json())["type"] == "ready"
        await talk.send_bytes(make_frame(0, np.zeros(640, np.int16)))
        assert parse_answer(await talk.receive_bytes())[0] == 0
      return status

  trusting = ssl.create_default_context(cafile=str(folder / "authority.pem"))
  assert asyncio.run(main(trusting)) == 200
  with pytest.raises(aiohttp.ClientConnectorCertificateError):
    asyncio.run(main(ssl.create_default_context()))
  with pytest.raises(aiohttp.ClientConnectorCertificateError):
    asyncio.run(main(trusting, name="another.test"))
  unchecked = ssl.create_default_context()
  unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
  with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
    asyncio.run(main(unchecked, name="another.test"))  # Host and Origin are looked at as ever.
  assert caught.value.status == 421
  for origin in (f"http://{NAME}:{port}", "https://evil.example", f"https://{NAME}"):
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
      asyncio.run(main(trusting, origin=origin))
    assert caught.value.status == 403


def test_what_is_no_certificate_is_one_line(made, tmp_path):
  _, (_, certificate, key) = made
  other = certificates.make_certificates(str(tmp_path / "other"), [NAME])
  (tmp_path / "rubbish.pem").write_text("rubbish")
  locked = tmp_path / "locked.pem"
  from cryptography.hazmat.primitives import serialization

  private = serialization.load_pem_private_key(open(key, "rb").read(), None)
  form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word")
  locked.write_bytes(private.private_bytes(*form))
  for cert, private, message in (
      (certificate, str(tmp_path / "none.pem"), "^--private_key: found no file"),
      (str(tmp_path), key, "^--certificate: found no file"),
      (certificate, other[2], "KEY_VALUES_MISMATCH|key values mismatch"),
      (str(tmp_path / "rubbish.pem"), key, "rubbish.pem: found"),
      (certificate, str(locked), "without a password"),
  ):
    with pytest.raises(InputError, match=message) as caught:
      certificates.load_context(cert, private)
    assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_fit_is_one_line(made, tmp_path, monkeypatch):
  folder, _ = made
  with pytest.raises(InputError, match=f"found a certificate for 192.168.1.5, {NAME}, expected one for 10.0.0.1"):
    certificates.make_certificates(str(folder), ["10.0.0.1"])
  half = tmp_path / "half"
  half.mkdir()
  (half / "key.pem").write_text("")
  with pytest.raises(InputError, match="authority.pem: found none, but others beside it"):
    certificates.make_certificates(str(half), [NAME])
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="a folder that can be written"):
    certificates.make_certificates(str(tmp_path / "file" / "below"), [NAME])
  monkeypatch.setattr(certificates, "_DAYS", 0)
  certificates.make_certificates(str(tmp_path / "old"), [NAME])
  time.sleep(1.1)
  with pytest.raises(InputError, match="was valid until"):
    certificates.make_certificates(str(tmp_path / "old"), [NAME])


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(host="0.0.0.0"), "^--host: found 0.0.0.0 without TLS, expected --tls=FOLDER"),
        (dict(host="192.168.1.5", url="http://my-laptop:8720"), "^--host: found 192.168.1.5 without TLS"),
        (dict(host="0.0.0.0", tls="{}"), "^--url: found none, expected with --host=0.0.0.0"),
        (dict(certificate="a.pem"), "^--certificate: found a.pem, expected --certificate and --private_key"),
        (dict(private_key="a.pem"), "^--private_key: found a.pem"),
        (dict(certificate="a.pem", private_key="a.pem", tls="{}"), "^--tls: found --certificate with it"),
        (dict(certificate="a.pem", private_key="a.pem"), "^--certificate: found no file a.pem"),
        (dict(endpoint="http://127.0.0.1:8080/v1"), "^--model: found none"),
        (dict(model="m"), "^--model: found m"),
        (dict(endpoint="eliza", model="m"), "^--model: found m"),
        (dict(endpoint="http://", model="m"), "^--endpoint: found http://"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(tmp_path, flags, message):
  flags = {name: value.format(tmp_path / "tls") for name, value in flags.items()}
  with pytest.raises(InputError, match=message):
    hold_conversations(workdir="nowhere", **flags)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium-headless-shell")
def test_a_browser_elsewhere_on_the_network(made, port, tmp_path):
  from cryptography.hazmat.primitives import serialization

  public = read_certificate(made[0] / "certificate.pem").public_key()
  form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
  pin = base64.b64encode(hashlib.sha256(public.public_bytes(*form)).digest()).decode()
  flags = (
      f"--host-resolver-rules=MAP {NAME} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--use-fake-device-for-media-stream",
      "--use-fake-ui-for-media-stream", f"--ignore-certificate-errors-spki-list={pin}",
  )  # fmt: skip
  address = f"https://{NAME}:{port}/token/"
  with contextlib.ExitStack() as stack:
    page = stack.enter_context(OpenPage(address, tmp_path / "profile", holds_clock=False, options=flags))
    # This server's avatar is none; all that is of the network and the microphone is there.
    assert page.evaluate("isSecureContext && Boolean(navigator.mediaDevices) && Boolean(window.AudioWorkletNode)")
    told = page.evaluate("""new Promise((resolve, reject) => {
      const socket = new WebSocket(location.href.replace(/^http/, "ws") + "socket"), told = [];
      socket.binaryType = "arraybuffer";
      socket.onerror = () => reject(new Error("refused"));
      socket.onmessage = ({ data }) => {
        told.push(typeof data === "string" ? JSON.parse(data).type : data.byteLength);
        if (told.length === 1) socket.send(new Uint8Array(1284));
        else socket.close(), resolve(told);
      };
    })""")
    assert told == ["ready", 8 + 224 + 1280]
    assert all(asked.startswith((address.removesuffix("token/"), "wss://")) for asked in page.requests)
    stranger = stack.enter_context(OpenPage("about:blank", tmp_path / "other", holds_clock=False, options=flags[:1]))
    stranger._call("Page.navigate", url=address)
    assert "errorText" in stranger._call("Page.navigate", url=address)  # Who does not trust the authority sees no page.
