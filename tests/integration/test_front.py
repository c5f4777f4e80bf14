"""Towards the sites, the front lets a SuperNode's calls through and nothing else.

A real SuperLink and a real front run on loopback for the whole file.
"""

import json
import socket
import ssl
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.superlink.routers.fleet.router import router
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedlora.errors import EnrolmentError, RunError
from fedlora.runtime.carriers.superlink import carried
from fedlora.runtime.carriers.tasks import Endpoint
from fedlora.runtime.enrolment import ENROL_PATH, EnrolmentRequest, JoinBundle, post, state_of
from fedlora.runtime.server import admission
from fedlora.runtime.server.app_bundle import app_bundle
from fedlora.runtime.server.authority import Authority
from fedlora.runtime.server.bundle import invite
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.control import Control
from fedlora.runtime.server.directory import Directory
from fedlora.runtime.server.folder import ServerFolder
from fedlora.runtime.server.relay import FLEET
from fedlora.runtime.server.superlink import flower_environment
from tests.deployment import (
    ROOT,
    new_aggregator,
    new_gate_key,
    new_keys,
    openssh,
    process,
    running_front,
    running_superlink,
    trusting,
    wait_until,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:GitWildMatchPattern:DeprecationWarning"  # flwr's own use of pathspec
)
PULL = "/v1/fleet/pull-messages"


@dataclass(frozen=True)
class Site:
    """A site that is admitted, and its node's key."""

    name: str
    key: ec.EllipticCurvePrivateKey
    node_id: int


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    folder = new_aggregator(tmp_path_factory.mktemp("aggregator") / "agg", sites=[])
    with running_superlink(folder), running_front(folder):
        yield folder


@pytest.fixture(name="site")
def _site(folder, request):
    """Admit a new site, by the whole way: bundle, request over TLS, fingerprint."""
    return admitted(folder, f"site-{abs(hash(request.node.name))}")


@pytest.fixture(name="run")
def _run(folder):
    """Start a Flower run that nobody executes."""
    with Control(folder) as control:
        return control.start_run(build_fab_from_disk(ROOT), config={})


def admitted(folder: ServerFolder, name: str) -> Site:
    bundle = JoinBundle.read(invite(folder, name))
    key = ec.generate_private_key(ec.SECP384R1())
    sent = EnrolmentRequest(
        site=name, token=bundle.token, node_key=openssh(key), gate_key=new_gate_key()
    )
    assert post(sent, bundle) == "waiting"
    node_id = admission.admit(folder, name, fingerprint=sent.fingerprint)
    assert state_of(sent, bundle) == "admitted"
    return Site(name, key, node_id)


def address(folder):
    return Configuration.read(folder.configuration).address


def fleet(folder, key):
    """Return Flower's own client of the fleet API, as a SuperNode has it."""
    return FleetHttpClient.from_server_address(
        address(folder),
        insecure=False,
        root_certificates=folder.ca_certificate.read_bytes(),
        interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
    )


def activate(client, key):
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return client.ActivateNode(ActivateNodeRequest(public_key=pem, heartbeat_interval=30)).node_id


def status_of(call, *arguments):
    with pytest.raises(httpx.HTTPStatusError) as caught:
        call(*arguments)
    return caught.value.response.status_code


def spoken(folder, text: bytes, *, size: int = 65536) -> bytes:
    """Return what the front answers to raw bytes, until it closes or falls silent."""
    host, port = address(folder).split(":")
    context = trusting(folder)
    plain = socket.create_connection((host, int(port)), timeout=2)
    with plain, context.wrap_socket(plain, server_hostname=host) as connection:
        connection.sendall(text)
        answer = b""
        try:
            while piece := connection.recv(size):
                answer += piece
        except (TimeoutError, ConnectionResetError):
            pass
        return answer


def test_an_admitted_site_is_let_through(folder, site):
    """SuperLink answers it through the front, and knows it by the id of the directory."""
    with fleet(folder, site.key) as client:
        assert activate(client, site.key) == site.node_id
        node = Node(node_id=site.node_id)
        assert not client.PullMessages(PullMessagesRequest(node=node)).messages_list
    assert Directory(folder).admitted()[site.node_id] == site.name
    with Control(folder) as control:
        assert control.nodes()[site.node_id] == "online"


@contextmanager
def sending(folder):
    """Yield what sends a message to a node: the grid of a run that this process plays."""
    configuration = Configuration.read(folder.configuration)
    endpoint = Endpoint(
        address=configuration.superlink_address,
        secret=folder.superexec_secret.read_bytes(),
        certificates=folder.ca_certificate.read_bytes(),
    )
    with Control(folder) as control:
        control.start_run(app_bundle(), config={})
    tokens = []
    wait_until(lambda: tokens.append(endpoint.acquire("flwr-serverapp")) or tokens[-1])
    with carried(endpoint, tokens[-1], still_wanted=lambda: None) as grid:
        yield lambda node: grid.push_messages([Message(RecordDict(), node, "train")])


def pulled(client, node):
    return client.PullMessages(PullMessagesRequest(node=node)).messages_list


def test_a_site_that_waits_for_a_message_gets_it_as_soon_as_it_is_there(folder, site):
    """It asked before there was one; the answer comes with the message, not after a pause."""
    with sending(folder) as send, fleet(folder, site.key) as client:
        activate(client, site.key)
        node = Node(node_id=site.node_id)
        with ThreadPoolExecutor(1) as aside:
            waiting = aside.submit(pulled, client, node)
            time.sleep(1)
            assert not waiting.done()
            send(site.node_id)
            assert len(waiting.result(timeout=10)) == 1


def test_a_message_that_is_not_confirmed_is_given_again_and_a_confirmed_one_is_not(folder, site):
    """An answer may be lost with the line; what is confirmed has arrived. Three times at most."""
    with sending(folder) as send, fleet(folder, site.key) as client:
        activate(client, site.key)
        node = Node(node_id=site.node_id)
        send(site.node_id)
        [first], [second] = pulled(client, node), pulled(client, node)
        assert second == first
        identifier = first.metadata.message_id
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=node, run_id=first.metadata.run_id, message_object_id=identifier
            )
        )
        send(site.node_id)
        given = [[m.metadata.message_id for m in pulled(client, node)] for _ in range(4)]
        assert given[0] == given[1] == given[2] != [identifier]
        assert given[3] == []


def test_a_site_that_nobody_admitted_is_refused(folder):
    """401 makes a SuperNode stop by itself."""
    key = ec.generate_private_key(ec.SECP384R1())
    with fleet(folder, key) as client:
        assert status_of(activate, client, key) == 401


def test_a_site_cannot_pose_as_another(folder, site):
    """SuperLink compares the key that signed with the node in the body."""
    other = admitted(folder, "other")
    with fleet(folder, site.key) as client:
        request = PullMessagesRequest(node=Node(node_id=other.node_id))
        assert status_of(client.PullMessages, request) == 401


def test_a_revoked_site_is_refused_by_the_front_and_by_superlink(folder, site):
    """Each of them for itself; and the key never comes back."""
    admission.revoke(folder, site.name, reason="left")
    request = PullMessagesRequest(node=Node(node_id=site.node_id))
    with fleet(folder, site.key) as client:
        assert status_of(client.PullMessages, request) == 401
    superlink = Configuration.read(folder.configuration).superlink_address
    with FleetHttpClient.from_server_address(
        superlink,
        insecure=False,
        root_certificates=folder.ca_certificate.read_bytes(),
        interceptors=[NodeAuthHttpInterceptor(site.key, site.key.public_key())],
    ) as behind:
        assert status_of(behind.PullMessages, request) == 401
    with Control(folder) as control, pytest.raises(EnrolmentError, match="new keys"):
        control.register(openssh(site.key))


def test_a_stranger_uploads_nothing(folder):
    """The refusal comes while the body is still to come: 8 MiB are never taken."""
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: a\r\ncontent-length: 8388608\r\n\r\n"
    answer = spoken(folder, head)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer.lower()


def test_the_table_is_flowers_router():
    """A new Flower with other calls is noticed; two of them are the operator's alone."""
    routes = {route.path for route in router.routes}
    operators = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert routes == FLEET.keys() | operators


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-runs",
        "/v1/control/register-node",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/runtime/push-messages",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/docs",
        "/openapi.json",
        "/health",
        "/metrics",
        "/",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol%2flist-runs",
        "//v1/fleet/pull-messages",
        "/v1//fleet/pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull%2dmessages",
        "/V1/fleet/pull-messages",
        "/v1/fleet/pull-messages?a=b",
        "/v1/fleet/pull-messages;/../../control/list-runs",
        "/v1/fleet/pull-messages%00",
        "https://127.0.0.1/v1/control/list-runs",
        "https://127.0.0.1/v1/fleet/pull-messages",
        "\\v1\\control\\list-runs",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_every_other_path_is_not_found(folder, path, method):
    """Control, runtime, documentation, and each trick that might lead there."""
    answer = spoken(
        folder, f"{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"])
def test_only_posts_get_through(folder, method):
    """SuperLink never sees another method."""
    text = f"{method} {PULL} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    assert spoken(folder, text.encode()).startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /", b"411"),
        (b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcdef", b"400"),
        (b"content-length: -1\r\n\r\n", b"400"),
        (b"content-length: 0x10\r\n\r\n", b"400"),
        (b"transfer-encoding: gzip, chunked\r\n\r\n", b"400"),
        (b"content length: 5\r\n\r\nabcde", b"400"),
        (b"x: a\x00b\r\n\r\n", b"400"),
        (b"x: " + b"a" * 40_000, b"400"),
    ],
)
def test_smuggling_is_refused(folder, head, status):
    """A request that two servers might frame differently gets no answer but a refusal."""
    answer = spoken(folder, b"POST " + PULL.encode() + b" HTTP/1.1\r\nhost: a\r\n" + head)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_chunk_gets_through_and_more_does_not(folder, site, run):
    """5 MiB reach SuperLink, which says that the run is not running; 8 MiB are refused unread."""
    node = Node(node_id=site.node_id)
    with fleet(folder, site.key) as client:
        chunk = PushObjectRequest(node=node, run_id=run, object_content=bytes(5 << 20))
        assert status_of(client.PushObject, chunk) == 403
    signed = NodeAuthHttpInterceptor(site.key, site.key.public_key())
    length = {"content-length": str(FLEET["/v1/fleet/push-object"] + 1)}
    request = httpx.Request("POST", "https://a/v1/fleet/push-object", headers=length)
    signed.intercept(ProtobufRequestContext("", chunk, request), lambda _: httpx.Response(200))
    headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    head = f"POST /v1/fleet/push-object HTTP/1.1\r\n{headers}\r\n"
    assert spoken(folder, head.encode()).startswith(b"HTTP/1.1 413 ")


def test_runs_are_started_and_stopped_on_loopback(folder, run):
    """The aggregator's own processes reach the control API that sites do not."""
    with Control(folder) as control:
        assert control.runs()[run] == "pending"
        control.stop_run(run)
        assert control.runs()[run] == "finished:stopped"
        with pytest.raises(RunError, match="refuses"):
            control.stop_run(run)


def test_headers_are_no_way_around(folder, site):
    """What names another path, host or method is dropped on the way."""
    with fleet(folder, site.key) as client:
        activate(client, site.key)
        tricks = {
            "x-original-url": "/v1/control/list-runs",
            "x-rewrite-url": "/v1/control/list-runs",
            "x-forwarded-host": "elsewhere",
            "x-http-method-override": "DELETE",
            "x-flwr-client": "cli",
            "connection": "flwr-signature, keep-alive",
        }
        client._client.headers.update(tricks)
        node = Node(node_id=site.node_id)
        assert not client.PullMessages(PullMessagesRequest(node=node)).messages_list


def test_plaintext_and_another_ca_get_nowhere(folder, tmp_path):
    """No answer without TLS; a front under another CA is not believed."""
    host, port = address(folder).split(":")
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP")
    other = tmp_path / "ca.crt"
    other.write_bytes(Authority.new().pair().certificate)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(
            f"https://{host}:{port}/healthz", verify=ssl.create_default_context(cafile=str(other))
        )


def test_old_tls_is_refused(folder):
    """TLS 1.2 is the oldest."""
    host, port = address(folder).split(":")
    context = trusting(folder)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    plain = socket.create_connection((host, int(port)), timeout=5)
    with plain, pytest.raises((ssl.SSLError, ConnectionResetError)):
        context.wrap_socket(plain, server_hostname=host)


def test_a_bundle_of_another_ca_sends_nothing(folder, tmp_path):
    """A site that was given a wrong bundle, or meets a wrong aggregator, keeps its token."""
    other = new_aggregator(tmp_path / "other", sites=["bank"])
    bundle = JoinBundle.read(other.bundle("bank")).model_copy(
        update={"aggregator": address(folder)}
    )
    node_key, gate_key = new_keys()
    sent = EnrolmentRequest(site="bank", token=bundle.token, node_key=node_key, gate_key=gate_key)
    with pytest.raises(EnrolmentError, match="Nothing was sent"):
        post(sent, bundle)


def test_a_token_of_nobody_is_refused(folder):
    """The client says why, and what to ask for."""
    bundle = JoinBundle.read(invite(folder, "hospital"))
    node_key, gate_key = new_keys()
    sent = EnrolmentRequest(site="hospital", token="u" * 43, node_key=node_key, gate_key=gate_key)
    with pytest.raises(EnrolmentError, match="fedlora server invite"):
        post(sent, bundle)


@pytest.mark.parametrize(
    ("body", "status"), [(b"{}", b"400"), (b"[" * 5000, b"400"), (b"\xff", b"400")]
)
def test_a_request_that_is_none_is_refused(folder, body, status):
    """Junk at the one address that strangers may write to."""
    head = f"POST {ENROL_PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
    assert spoken(folder, head.encode() + body).startswith(b"HTTP/1.1 " + status)


def test_other_keys_than_compared_are_not_admitted(folder):
    """The operator's fingerprint decides."""
    bundle = JoinBundle.read(invite(folder, "ministry"))
    node_key, gate_key = new_keys()
    sent = EnrolmentRequest(
        site="ministry", token=bundle.token, node_key=node_key, gate_key=gate_key
    )
    with pytest.raises(EnrolmentError, match="has not sent its keys"):
        admission.admit(folder, "ministry", fingerprint=sent.fingerprint)
    post(sent, bundle)
    with pytest.raises(EnrolmentError, match="by another channel"):
        admission.admit(folder, "ministry", fingerprint=f"SHA256:{'A' * 43}=")
    assert state_of(sent, bundle) == "waiting"


def test_health_and_metrics_are_told_on_loopback(folder, site):
    """Outsiders learn one word; the host's own monitoring all of it, and no secret."""
    public = httpx.get(f"https://{address(folder)}/healthz", verify=trusting(folder))
    assert (public.status_code, public.json()) == (200, {"healthy": True})
    port = Configuration.read(folder.configuration).metrics_port
    inside = httpx.get(f"http://127.0.0.1:{port}/healthz").json()
    assert inside["superlink"] == "up"
    assert inside["sites_online"][site.name] is False
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert f'fedlora_site_online{{site="{site.name}"}} 0' in text
    assert 'fedlora_front_requests_total{path="other",status="404"}' in text
    assert "BEGIN" not in text


def test_logs_are_json(folder):
    """Each line of the front's log is an object that names process and event."""
    lines = (folder.logs / "front.log").read_text().splitlines()
    assert lines
    assert all({"time", "level", "process", "event"} <= json.loads(line).keys() for line in lines)


@pytest.mark.slow
def test_a_stock_supernode_lives_behind_the_front(tmp_path):
    """It stays while SuperLink, then the front are killed and restarted, and stops once revoked.

    SuperLink's database outlives the kill, so nobody is admitted anew.
    """
    folder = new_aggregator(tmp_path / "agg", sites=[])
    with running_superlink(folder) as superlink, running_front(folder) as front:
        site = admitted(folder, "bank")
        with supernode(folder, site, tmp_path) as node:
            wait_until(lambda: is_online(folder, site), node)
            superlink.kill()
            superlink.wait()
            wait_until(lambda: pulls(folder, status=503) > 1, node)
            with running_superlink(folder):
                answered = pulls(folder, status=200)
                wait_until(lambda: pulls(folder, status=200) > answered, node)
                assert is_online(folder, site)
                front.kill()
                front.wait()
                with running_front(folder):
                    wait_until(lambda: pulls(folder, status=200) > 0, node)
                    admission.revoke(folder, "bank", reason="left")
                    node.wait(30)


@pytest.mark.slow
def test_a_stock_supernode_that_nobody_admitted_ends(folder, tmp_path):
    """It is refused, stops by itself, and SuperLink has heard of no new node."""
    stranger = Site("nobody", ec.generate_private_key(ec.SECP384R1()), node_id=0)
    with Control(folder) as control:
        before = control.nodes().keys()
        with supernode(folder, stranger, tmp_path) as node:
            node.wait(60)
        assert control.nodes().keys() == before


def supernode(folder: ServerFolder, site: Site, path: Path):
    key = path / "node.key"
    key.write_bytes(
        site.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    command = [
        str(Path(sysconfig.get_path("scripts")) / "flower-supernode"),
        "--superlink",
        address(folder),
        "--root-certificates",
        str(folder.ca_certificate),
        "--auth-supernode-private-key",
        str(key),
        "--isolation",
        "process",
    ]
    return process(command, env={**flower_environment(folder)}, log=path / "supernode.log")


def is_online(folder, site):
    try:
        with Control(folder) as control:
            return control.nodes().get(site.node_id) == "online"
    except RunError:
        return False


def pulls(folder, *, status):
    """Return how many pulls the front has answered with a status."""
    port = Configuration.read(folder.configuration).metrics_port
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    start = f'fedlora_front_requests_total{{path="{PULL}",status="{status}"}} '
    counts = [line.removeprefix(start) for line in text.splitlines() if line.startswith(start)]
    return int(counts[0]) if counts else 0
