"""Tickets as folders or repositories of the Hugging Face hub: config.json, ticket.safetensors, README.md.

config.json and README.md are for human readers and the hub. A ticket is read from ticket.safetensors only, which
contains no code and is checked like any ticket's file.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slth.disk import write_all
from slth.extras import extra

if TYPE_CHECKING:
    from slth.ticket.ticket import Ticket

FILE = "ticket.safetensors"
_CARD = """---
library_name: slth
tags:
- strong-lottery-ticket
- pruning
---

# A strong lottery ticket

A sparse subnetwork of {network}: {bytes:,} bytes rebuild it exactly.

| | |
|---|---|
{rows}

```python
import slth

ticket = slth.Ticket.from_pretrained({name!r})
model = ticket.apply(build())  # {build}
```

`print(ticket.describe())` shows every weight, and how the module is built where the ticket says so.
"""


def save(
    ticket: Ticket,
    folder: str | os.PathLike[str],
    *,
    method: str | None = None,
    losses: Mapping[str, float] | None = None,
    name: str | None = None,
) -> Path:
    """Write the three files, each atomically, and return the folder.

    name: the name of the repository in the model card; None: that of the folder. Raises as `Ticket.save_pretrained`.
    """
    config = _config(ticket, method, losses)
    place = Path(folder)
    card = _card(ticket, config, name or place.name)
    place.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    write_all(place, {FILE: ticket.to_bytes(), "config.json": text.encode(), "README.md": card.encode()})
    return place


def find(place: str | os.PathLike[str], **options: Any) -> Path:
    """Return the path of the ticket's file: in a folder, or in the cache after download from a repository."""
    if Path(place).is_dir() or not isinstance(place, str):
        return Path(place) / FILE
    if place.count("/") != 1:
        raise FileNotFoundError(f"{place}: no such folder, and not the name of a repository (user/name)")
    with extra("hub"):
        from huggingface_hub import hf_hub_download
    return Path(hf_hub_download(place, FILE, library_name="slth", **options))


def push(
    ticket: Ticket,
    repo: str,
    *,
    method: str | None = None,
    losses: Mapping[str, float] | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload ticket",
) -> str:
    """Create the repository if needed, and upload the three files as one commit. Returns its address."""
    with extra("hub"):
        from huggingface_hub import HfApi
    with tempfile.TemporaryDirectory() as folder:
        save(ticket, folder, method=method, losses=losses, name=repo)
        api = HfApi(token=token, library_name="slth")
        created = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message=message)
    return str(created)


def _config(ticket: Ticket, method: str | None, losses: Mapping[str, float] | None) -> dict[str, Any]:
    if method is not None and (not isinstance(method, str) or not method.isprintable() or not method):
        raise ValueError(f"method={method!r}: must be a line of text or None")
    for name, loss in (losses or {}).items():
        if not isinstance(name, str) or not name.isprintable() or not math.isfinite(loss):
            raise ValueError(f"losses: {name!r} is {loss!r}, must be finite numbers by name")
    entries, kept = sum(w.size for w in ticket.weights), sum(w.kept for w in ticket.weights)
    return {
        "library_name": "slth",
        "ticket_version": ticket.version,
        "method": method,
        "keep": kept / max(entries, 1),
        "kept": kept,
        "entries": entries,
        "bytes": len(ticket.to_bytes()),
        "losses": {name: float(loss) for name, loss in (losses or {}).items()},
        "digest": ticket.digest,
        "built": None if ticket.built is None else dict(ticket.built),
    }


def _card(ticket: Ticket, config: Mapping[str, Any], name: str) -> str:
    rows = [("found by", config["method"] or "not said")]
    rows += [("keep", f"{config['keep']:.4g} ({config['kept']:,} of {config['entries']:,} weights)")]
    rows += [(f"{loss}", f"{value:.6g}") for loss, value in config["losses"].items()]
    rows += [("digest of the network", config["digest"])]
    base = bool(ticket.over)
    return _CARD.format(
        network="the network that it was pruned from" if base else "a random network, whose weights a seed makes",
        bytes=config["bytes"],
        rows="\n".join(f"| {key.replace('|', '/')} | {value.replace('|', '/')} |" for key, value in rows),
        name=name,
        build="the very network that was pruned" if base else "a plain network of the same names and shapes",
    )
