"""`llava-stf serve`: OpenAI's HTTP routes over one model."""

from typing import Annotated, Any, Literal

import typer

from llava_stf.cli.common import NOTICE, Device, Dtype, Model, Quantization, importing, waiting


def _check_counts(text: str | None) -> str | None:
    if text is not None and text != "all" and not all(part.isdecimal() and int(part) > 0 for part in text.split(",")):
        raise typer.BadParameter(f"expected counts such as '144' or '144,64', or 'all', found '{text}'")
    return text


def serve(
    more: Annotated[
        list[str] | None, typer.Argument(metavar="-- ...", help="Further options of vllm serve, with --engine vllm.")
    ] = None,
    model: Model = "tiny",
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="Answer here, or hand over to vLLM, if it is installed.")
    ] = "transformers",
    host: Annotated[
        str, typer.Option(help="Address to listen at; '0.0.0.0' is every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8000,
    share_port: Annotated[
        bool, typer.Option("--share-port", help="Several servers of this user at one port, each with this option.")
    ] = False,
    api_key: Annotated[
        str | None, typer.Option(envvar="LLAVA_STF_API_KEY", help="What clients have to send as their API key.")
    ] = None,
    served_name: Annotated[
        str | None,
        typer.Option(help="Name of the model in requests; default: that of --model, of a path its last part."),
    ] = None,
    vision_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N...]|all", callback=_check_counts, help="Tokens per image; of several, requests choose one."
        ),
    ] = None,
    quantization: Quantization = None,
    dtype: Dtype = None,
    device: Device = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Requests that are answered at a time; default: 16.")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(min=1, help="Requests that may wait, more are refused; default: 64.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens, where a request does not say; default: 512.")
    ] = None,
    max_body_megabytes: Annotated[float | None, typer.Option(min=0.001, help="Longest request; default: 64.")] = None,
    max_image_megabytes: Annotated[
        float | None, typer.Option(min=0.001, help="Longest file of an image; default: 20.")
    ] = None,
    max_image_megapixels: Annotated[
        float | None, typer.Option(min=0.001, max=89, help="Largest image; default: 50.")
    ] = None,
    max_images: Annotated[int | None, typer.Option(min=0, help="Images of one request; default: 8.")] = None,
    max_vision_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of all images of one request; default: what fits.")
    ] = None,
    max_cache_megabytes: Annotated[
        float | None,
        typer.Option(min=0, help="Of conversations and images that are kept for later requests; default: 512."),
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch images from http(s) URLs, of public addresses only.")
    ] = False,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Log the texts of requests and answers.")] = False,
    ui: Annotated[bool, typer.Option("--ui", help="Show a page to try the model at the same address.")] = False,
    compare_model: Annotated[
        str | None, typer.Option(help="Second model for the page's side by side; of 'tiny' it is 'tiny-full'.")
    ] = None,
) -> None:
    """Serve a model over HTTP with OpenAI's routes: /v1/chat/completions, /v1/completions, /v1/models.

    Also /health, and /metrics for Prometheus. SIGTERM ends it when the running answers are done.
    """
    limits: dict[str, Any] = {
        "api_key": api_key or None,
        "served_name": served_name,
        "max_batch": max_batch,
        "max_queue": max_queue,
        "max_new_tokens": max_new_tokens,
        "max_body_bytes": _million(max_body_megabytes, 2**20),
        "max_image_bytes": _million(max_image_megabytes, 2**20),
        "max_image_pixels": _million(max_image_megapixels, 10**6),
        "max_images": max_images,
        "max_vision_tokens": max_vision_tokens,
        "max_cache_bytes": _million(max_cache_megabytes, 2**20),
        "allow_urls": allow_urls or None,
        "log_prompts": log_prompts or None,
    }
    if share_port and not port:
        raise typer.BadParameter("--share-port needs a --port that all servers are given, and 0 is a free one for each")
    given = {"host": host, "port": port, **{name: value for name, value in limits.items() if value is not None}}
    loading = {"vision_tokens": vision_tokens, "quantization": quantization, "dtype": dtype, "device": device}
    loading = {name: value for name, value in loading.items() if value is not None}
    if compare_model is not None and not ui:
        raise typer.BadParameter("--compare-model is for the page; add --ui")
    if more and engine != "vllm":
        raise typer.BadParameter(f"'{more[0]}' is for vLLM, and --engine is transformers")
    if engine == "vllm":
        from llava_stf.serving.vllm import exec_vllm

        page = {"ui": ui or None, "compare_model": compare_model, "share_port": share_port or None}
        page = {name: value for name, value in page.items() if value is not None}
        exec_vllm(model, {**given, **loading, **page}, more or [])
    _serve(model, given, loading, share_port=share_port, ui=ui, compare_model=compare_model)


def _serve(
    model: str,
    given: dict[str, Any],
    loading: dict[str, Any],
    *,
    share_port: bool,
    ui: bool,
    compare_model: str | None,
) -> None:
    import sys
    from pathlib import Path

    from llava_stf.errors import MissingDependencyError
    from llava_stf.serving.listening import bind

    sockets = bind(
        given["host"], given["port"], shared=share_port
    )  # before anything is loaded: a taken port is said at once
    try:
        with importing():
            from llava_stf.loading import BUNDLED, read_config_to_ask
            from llava_stf.serving.app import create_app
            from llava_stf.serving.options import ServeOptions
            from llava_stf.serving.run import run

            if ui:
                from llava_stf.serving.page import mount_page
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "prometheus_client", "starlette", "uvicorn"):
            raise
        raise MissingDependencyError("llava-stf serve needs a web server: pip install 'llava-stf[serve]'") from error

    name = Path(model).name if Path(model).expanduser().exists() else model
    options = ServeOptions(**{"served_name": name, **given})
    if options.max_image_bytes > options.max_body_bytes:
        raise typer.BadParameter("--max-image-megabytes is beyond --max-body-megabytes")
    compare = compare_model or ("tiny-full" if ui and model == "tiny" else None)
    for each in filter(None, (model, compare)):
        read_config_to_ask(each)  # what cannot be read is said before the other one is loaded
    if model in BUNDLED:
        print(NOTICE.format(model=model), file=sys.stderr)
    app = create_app(
        _load(model, loading), options, compare=None if compare is None else _load(compare, _twin(compare, loading))
    )
    if ui:
        app = mount_page(app, app.state.engine, options, compare=app.state.compare)
    run(app, sockets)


def _load(model: str, options: dict[str, Any]) -> Any:
    from transformers.utils.logging import disable_progress_bar

    from llava_stf.loading import load_model

    asked = options.get("vision_tokens")
    if asked is not None and asked != "all":
        counts = [int(count) for count in asked.split(",")]
        options = {**options, "vision_tokens": counts if len(counts) > 1 else counts[0]}
    disable_progress_bar()
    with waiting(f"Loading {model}"):
        return load_model(model, **options)


def _twin(model: str, options: dict[str, Any]) -> dict[str, Any]:
    """How the second model is loaded: as the first one, with its own tokens, a plain LLaVA with all of them."""
    from llava_stf.loading import read_config_to_ask
    from llava_stf.models.registry import is_plain_config

    own = {"vision_tokens": "all"} if is_plain_config(read_config_to_ask(model)) else {}
    return {**{name: value for name, value in options.items() if name != "vision_tokens"}, **own}


def _million(value: float | None, unit: int) -> int | None:
    return None if value is None else int(value * unit)
