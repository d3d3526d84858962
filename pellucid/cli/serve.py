"""`pellucid serve`: OpenAI's API over the models of this machine."""
from __future__ import annotations

import ipaddress
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli import _options as o
from pellucid.cli._frame import Json, emit, note
from pellucid.errors import BadRequest, MissingExtra

if TYPE_CHECKING:
    from pellucid.catalog.gate import Passed
    from pellucid.catalog.lineage import Node


def command(
    model: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Folders, files or owner/name[@revision]; else the model in the "
                                                                                 "package. NAME=MODEL gives it a name to be asked for by.")] = None,
    served_name: Annotated[list[str] | None, typer.Option("--served-model-name", metavar="NAME", help="The same as NAME=MODEL: what the models are asked for "
                                                                                                     "by, one for each, in their order.")] = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen on; this machine only, unless said otherwise.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    keys: Annotated[bool, typer.Option("--keys", help="Ask for a key, see `pellucid keys`; so does any address that others reach.")] = False,
    database: Annotated[str | None, typer.Option("--database", metavar="URL", help="Where keys are kept; else a file in your config folder.")] = None,
    open_door: Annotated[bool, typer.Option("--open", help="Serve an address that others reach without asking for keys.")] = False,
    allow_host: Annotated[list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A name that a server of this machine alone may be called by, "
                                                                                               "such as a proxy's; may be repeated.")] = None,
    max_waiting: Annotated[int, typer.Option("--max-waiting", min=0, help="Outputs that may wait beside those that run; more are answered with 429.")] = 256,
    max_body: Annotated[str, typer.Option("--max-body", metavar="SIZE", help="The longest body.")] = "8MiB",
    max_connections: Annotated[int, typer.Option("--max-connections", min=1, help="At once; more are answered with 503.")] = 1000,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="How long an answer may take; else any time.")] = None,
    drain: Annotated[float, typer.Option("--drain", metavar="SECONDS", min=0, help="How long a stopping server waits for what is under way.")] = 30.0,
    allow_unknown_fields: Annotated[bool, typer.Option("--allow-unknown-fields", help="Leave out fields nobody knows, and say so in a header.")] = False,
    tool_format: Annotated[str, typer.Option("--tool-format", help="How the model writes tool calls, where its template does not tell.")] = "auto",
    permission: Annotated[str | None, typer.Option("--permission", metavar="REFERENCE", help="To serve what a license stops otherwise.")] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", metavar="FILE", help="Serve https with this certificate, in PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="And its key.")] = None,
    adapter: Annotated[list[str] | None, typer.Option("--adapter", metavar="NAME=PATH", help="A LoRA adapter of the model, asked for by its name; may be "
                                                                                            "repeated.")] = None,
    any_base: o.AnyBase = False,
    cache: o.Cache = None,
    cache_dtype: o.CacheDtype = "auto",
    draft: o.Draft = None,
    threads: o.Threads = None,
    device: o.Device = "auto",
    gpu_layers: o.GpuLayers = None,
    dtype: o.Dtype = "auto",
    ops: o.OpsName = "auto",
    activations: o.Activations = "auto",
    deterministic: o.Deterministic = False,
    accept_unread: o.AcceptUnread = None,
    chat_template: o.Template = None,
    quiet: o.Quiet = False,
    json: Json = False,
) -> None:
    """Serve models behind OpenAI's API, so that tools that know it change nothing but an address; and a page to talk to them, at the address itself.

    With --json one object on stdout says where, once it listens.

    \b
    pellucid serve
    pellucid serve ./model --port 8080
    pellucid serve small=Qwen/Qwen3-0.6B large=./model.gguf
    curl http://127.0.0.1:8000/v1/completions -d '{"prompt": "Once upon a time", "max_tokens": 40}'
    """
    try:
        from pellucid.serve.exchange import Limits
        from pellucid.serve.wire import server_of
    except ImportError as error:
        raise MissingExtra(f"a server ({error.name})", "serve") from None
    from pellucid.serve.desk import Desk
    from pellucid.serve.door import HERE
    from pellucid.serve.openai import Served
    from pellucid.serve.tools import FORMATS
    if tool_format not in ("auto", *FORMATS):
        raise BadRequest(f"--tool-format {tool_format!r} is not one of auto, {', '.join(FORMATS)}", field="tool_format")
    if keys and open_door:
        raise BadRequest("--keys and --open contradict each other. Leave one out", field="keys")
    checked = _checked(database, host) if keys or database is not None or not (open_door or _is_here(host)) else None
    _check_tls(tls_cert, tls_key)
    limits = Limits(max_body_bytes=o.n_bytes(max_body, "--max-body") or 0, request_seconds=timeout, drain_seconds=drain,
                    max_connections=max_connections, allow_unknown_fields=allow_unknown_fields)
    how: dict[str, Any] = dict(accept_unread=accept_unread, quiet=quiet, device=device, dtype=dtype, ops=ops, activations=activations,
                               deterministic=deterministic, threads=threads, chat_template=chat_template, cache_bytes=o.n_bytes(cache),
                               cache_dtype=cache_dtype, draft=draft, gpu_layers=o.gpu_layers(gpu_layers))
    named = _all_named(model or [o.SHIPPED], served_name or [])
    adapters = _all_adapters(adapter or [], named)
    if not _is_here(host):
        _pass_gate([*named.values(), *([draft] if draft not in (None, "lookup") else [])], [*adapters.values()], permission, quiet)
    models = {name: o.load_model(path, **how) for name, path in named.items()}
    for name, path in adapters.items():
        next(iter(models.values())).load_adapter(name, path, any_base=any_base)
    for each in models.values():
        _ = each.engine  # what does not fit its memory is told now
    served = Served({name: Desk(each, max_waiting=max_waiting) for name, each in models.items()}, tool_format=tool_format)
    hosts = HERE | {name.lower() for name in allow_host or ()} if checked is None and _is_here(host) else None
    server = server_of(served, limits, checked, hosts, host=host, port=port, log_level="warning", ssl_certfile=tls_cert, ssl_keyfile=tls_key)
    _say_where(server, "http" if tls_cert is None else "https", [*models, *adapters], quiet=quiet, json=json)
    server.run()


def _pass_gate(models: list[str], adapters: list[str], permission: str | None, quiet: bool) -> None:
    """What others reach is hosted: what pellucid.toml declares is held against the license of every model and adapter, and of the data they learned from.

    A permission by which something passes is written into a run record beside pellucid.toml. Raises NotAllowed with the clause.
    """
    from pellucid.catalog import ancestry, gate
    from pellucid.weights.hub import resolve
    for path in [*models, *adapters]:
        node = ancestry.of_model(path)
        passed = gate.check(node, ("hosting",), Path.cwd(), permission)
        if passed is not None:
            record = [f"record: {_record(resolve(path), node, passed)}"] if passed.permission else []
            if not quiet:
                note("\n".join([*passed.notes, *record]))


def _record(place: Path, node: Node, passed: Passed) -> Path:
    """The run record of a permission: `serve.NAME.record.json` beside the pellucid.toml in force, or here. Hashes what is served."""
    from pellucid.catalog import gate, lineage, verdict
    from pellucid.catalog.ancestry import WEIGHTS
    from pellucid.records import Record, input_file
    stated = gate.declared(Path.cwd())
    where = (stated.path.parent if stated else Path.cwd()) / f"serve.{node.name.replace('/', '--')}.record.json"
    files = [file for file in (sorted(place.iterdir()) if place.is_dir() else [place]) if file.suffix in WEIGHTS]
    Record(kind="serve", settings={"model": str(place.absolute()), "permission": passed.permission, "use": passed.use}, seed=None, measured={},
           inputs={file.name: input_file(file) for file in files}, licenses={node.name: verdict.result_license(node)}, notes=passed.notes,
           output={"answer": passed.answer, "ancestry": lineage.plain(node)}).save(where)
    return where


def _check_tls(cert: Path | None, key: Path | None) -> None:
    if (cert is None) != (key is None):
        raise BadRequest("--tls-cert and --tls-key belong together. Give both, or neither", field="tls_cert")
    for name, file in (("--tls-cert", cert), ("--tls-key", key)):
        if file is not None and not file.is_file():
            raise BadRequest(f"{name} {str(file)!r} is not a file", field="tls_cert")


def _all_adapters(adapters: list[str], models: dict[str, str]) -> dict[str, str]:
    """The path of each by its name: NAME=PATH, or a path by its last part."""
    found = dict(_parted(text) or (o.adapter_name(text) or "", text) for text in adapters)
    if len(found) < len(adapters) or found.keys() & models.keys():
        raise BadRequest("two models or adapters have the same name. Give each its own: --adapter NAME=PATH", field="adapter")
    if found and len(models) > 1:
        raise BadRequest(f"--adapter belongs to one model, and {len(models)} are served. Serve them apart", field="adapter")
    return found


def _all_named(models: list[str], names: list[str]) -> dict[str, str]:
    """Each model by the name it is asked for by."""
    if names and (len(names) != len(models) or any(_parted(each) for each in models)):
        raise BadRequest(f"--served-model-name is given {len(names)} times for {len(models)} models ({', '.join(models)}). Give one for each, in their order, "
                         f"and none as NAME=MODEL", field="served_name")
    named = list(zip(names, models, strict=True)) if names else [_named(each) for each in models]
    if twice := [name for i, (name, _) in enumerate(named) if name in [other for other, _ in named[:i]]]:
        raise BadRequest(f"two models are called {twice[0]!r}. Give them names: one={named[0][1]} other=...", field="model")
    return dict(named)


def _named(text: str) -> tuple[str, str]:
    """NAME=MODEL, or a model by its own name: the last part of its path."""
    if named := _parted(text):
        return named
    return (text if text == o.SHIPPED or ("/" in text and not Path(text).exists()) else Path(text).resolve().name.removesuffix(".gguf")), text


def _parted(text: str) -> tuple[str, str] | None:
    """The two sides of NAME=PATH; None where the text is a path that has such a mark in it, or none."""
    name, mark, path = text.partition("=")
    return (name, path) if mark and name and "/" not in name else None


def _checked(database: str | None, host: str) -> Any:
    """The keys that are asked for. Raises BadRequest where there is none that opens anything."""
    from pellucid.serve.keys import Checked, Keys
    kept = Keys(database)
    if not any(key.why_not(time.time()) is None for key in kept.all()):
        raise BadRequest(f"--host {host} asks for keys, and there is none in use at {kept.url}. Make one with `pellucid keys add NAME`, or say --open if "
                         f"everybody who reaches the address may use it", field="host")
    return Checked(kept)


def _is_here(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _say_where(server: Any, scheme: str, names: list[str], *, quiet: bool, json: bool) -> None:
    """Says the address once it is listened on, with the port that was taken."""
    started = server.startup

    async def startup(sockets: Any = None) -> None:
        await started(sockets=sockets)
        if not server.started:
            return
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        where = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        if json:
            emit({"url": f"{where}/v1", "models": names})
            sys.stdout.flush()
        if not quiet:
            note(f"serving {', '.join(names)} at {where}/v1   (Ctrl-C stops)\n"
                 f"next: open {where} in a browser, or curl {where}/v1/completions -d '{{\"prompt\": \"Once upon a time\", \"max_tokens\": 40}}'")
    server.startup = startup
