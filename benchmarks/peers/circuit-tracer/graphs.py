"""Graph files and circuit-tracer, in an environment of its own; prints what was found as one JSON object.

    python graphs.py read FILE
    python graphs.py write FOLDER SET TOKENS FEATURES BATCH OUT

`read` lets circuit-tracer's own models of a graph file read one that was written elsewhere, and its own frontend list
it. `write` lets circuit-tracer write one of its own, OUT/graph.json, of what `run.py` attributes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from circuit_tracer.frontend.graph_models import Model
from circuit_tracer.frontend.utils import add_graph_metadata
from pydantic import ValidationError


def read(file: Path) -> dict[str, Any]:
    """How many nodes and links its models have of a file; why not, where they refuse it."""
    try:
        found = Model.model_validate_json(file.read_bytes())
    except ValidationError as error:
        return {"nodes": 0, "links": 0, "error": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        add_graph_metadata(found.metadata.model_dump(), folder)
        listed = json.loads((Path(folder) / "graph-metadata.json").read_text())["graphs"]
    return {"nodes": len(found.nodes), "links": len(found.links), "listed": len(listed), "error": ""}


def write(folder: Path, name: str, tokens: int, features: int, batch: int, out: Path) -> dict[str, Any]:
    """The graph of the case in the folder, by its own writer."""
    import torch
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.utils.create_graph_files import create_graph_files
    from run import loaded

    case, model = json.loads((folder / "case.json").read_text()), loaded(folder, name)
    graph = attribute(
        torch.tensor(case["ids"][:tokens]), model, attribution_targets=torch.tensor(case["targets"]),
        batch_size=batch, max_feature_nodes=features,
    )  # fmt: skip
    graph.cfg.tokenizer_name = str(folder / "tokenizer")
    create_graph_files(graph, slug="graph", output_path=str(out), scan="random")
    return {"file": str(out / "graph.json")}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["read", file]:
            print(json.dumps(read(Path(file))))
        case ["write", folder, name, *numbers, out]:
            print(json.dumps(write(Path(folder), name, *map(int, numbers), Path(out))))
        case _:
            sys.exit(__doc__)
