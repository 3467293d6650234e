"""What gpt2_prune refuses, in one line and before any work, and the configs that it takes."""

import sys

import pytest
import torch
from helpers import EXPERIMENTS, cats
from tables import one_case

from slth.experiments import gpt2_prune, lab

SCRIPT = EXPERIMENTS / "gpt2_prune.py"
TEXT = cats(150)

SIZES = "must be one or several of tiny, mini, small, medium, or one of these times a width (mini*0.5)"
REFUSED = [
    ("keep=0", "keep=0: must be a finite number > 0.0 and <= 1.0"),
    ("keep=1.2", "keep=1.2: must be a finite number > 0.0 and <= 1.0"),
    ("keep=half", "keep='half': must be a finite number"),
    ("size=huge", f"size='huge': {SIZES} (size='huge': must be one of"),
    ("size=tiny*0.3", f"size='tiny*0.3': {SIZES} (width=0.3: must be"),
    ("size=tiny*wide", f"size='tiny*wide': {SIZES} (could not convert"),
    ("size=tiny*", f"size='tiny*': {SIZES}"),
    ("size=[]", f"size=[]: {SIZES}"),
    ("size=['tiny','tiny']", f"size=['tiny', 'tiny']: {SIZES}, none twice"),
    ("lr=[]", "lr=[]: must be a number > 0 or a list of them, not empty"),
    ("lr=[0.1,0.1]", "lr=[0.1, 0.1]: must be a number > 0 or a list of them, none twice"),
    ("lr=fast", "lr='fast': must be a number > 0"),
    ("base_std=-1", "base_std=-1: must be a number > 0"),
    ("embedding_std=0", "embedding_std=0: must be a finite number > 0.0"),
    ("base_std=[0.1,0.1]", "base_std=[0.1, 0.1]: must be a number > 0 or a list of them, no pair with position_std"),
    ("position_std=x", "position_std='x': must be a number > 0"),
    ("position_std=[1,2,3]", "position_std=[1, 2, 3]: must be one number > 0, or 1 of them as base_std has"),
    ("method=foo", "method='foo': must be one of edge_popup, iterand, biprop, frozen, bernoulli"),
    ("method=iterand(speed=1)", "method.speed=1: iterand has no such option, must be one of schedule, arrival, every"),
    ("method=iterand(rate=2)", "method.rate=2: must be a number in (0, 1]"),
    ("method=iterand(every=4)", "method=IteRand: every=4 never redraws in 4 steps, must have every at most 3"),
    ("method=frozen(locked=0.6,pruned=0.1)", "keep=0.33: must be between 0.6, the share locked, and 0.9, what is not"),
    ("embedding_keep=2", "embedding_keep=2: must be a finite number > 0.0 and <= 1.0, or None"),
    ("method=biprop", "method='biprop': must be one that finds masks of every kind, or `with plain` (kind=signed(lev"),
    ("method=none.py:Own", "method=none.py:Own: no file none.py in"),
    ("policy=foo", "policy='foo': must be one of layer, global"),
    ("schedule=foo", "schedule='foo': must be one of"),
    ("masked=foo", "masked='foo': must be one of all, blocks"),
    ("scores=foo", "scores='foo': must be one of"),
    ("init=foo", "init='foo': must be one of gpt2, theory, signed"),
    ("dense_init=foo", "dense_init='foo': must be one of gpt2, theory, signed"),
    ("qk_scale=0", "qk_scale=0: must be theory, a number > 0, or a list of these"),
    ("qk_scale=big", "qk_scale='big': must be theory, a number > 0, or a list of these"),
    ("qk_scale=[]", "qk_scale=[]: must be theory, a number > 0, or a list of these, none twice"),
    ("qk_scale=[1,1.0]", "qk_scale=[1, 1.0]: must be theory, a number > 0, or a list of these, none twice"),
    ("steps=0", "steps=0: must be an int >= 1"),
    ("steps=2.5", "steps=2.5: must be an int >= 1"),
    ("pilot_steps=0", "pilot_steps=0: must be an int >= 1"),
    ("batch=0", "batch=0: must be an int >= 1"),
    ("every=0", "every=0: must be an int >= 1"),
    ("windows=0", "windows=0: must be an int >= 1"),
    ("length=1", "length=1: must be an int >= 2"),
    ("length=101", "data='fine.txt': must be long enough for windows of length=101 (text of 100 tokens"),
    ("warmup=1", "warmup=1: must be a finite number >= 0.0 and <= 0.9"),
    ("clip=0", "clip=0: must be a finite number > 0.0"),
    ("stride=0", "stride=0: must be an int >= 1"),
    ("stride=33", "stride=33: must be at most length=32"),
    ("stride=8", "stride=8: must be left out, or None, where the text has no validation and test parts"),
    ("documents=apart", "documents='apart': must be one of joined, separate"),
    ("documents=separate", "documents='separate': must be left out, or 'joined', where the text has no validation"),
    ("seed=-1", "seed=-1: must be an int >= 0"),
    ("data=missing", "data='missing': must be a text that can be used (corpus 'path:missing' cannot be read"),
    ("data=3", "data=3: must be a name"),
    ("data=.", "data='.': must be a text that can be used (corpus 'path:.' has no train and no validation part"),
    ("data=empty.txt", "data='empty.txt': must be a text that can be used (corpus 'path:empty.txt' is empty"),
    ("data=latin.txt", "data='latin.txt': must be a text that can be used (corpus 'path:latin.txt' is not UTF-8"),
    ("data=short.txt", "data='short.txt': must be long enough for windows of length=32 (text of 25 tokens"),
    ("vocabulary=words", "vocabulary='words': must be one that can be had (vocabulary 'words': must be bytes"),
    ("vocabulary=bpe:3", "vocabulary='bpe:3': must be one that can be had (size=3"),
    ("vocabulary=8192", "vocabulary=8192: must be a name"),
    ("checkpoints=3", "checkpoints=3: must be a folder, or None"),
    ("checkpoints=fine.txt", "checkpoints=fine.txt: cannot write there (File exists); choose another"),
    ("checkpoints=fine.txt/in", "checkpoints=fine.txt/in: cannot write there (Not a directory); choose another"),
    ("device=tpu", "device='tpu': must be one of auto, cpu, cuda"),
    ("keeep=0.5", "keeep=0.5: unknown key, did you mean keep?"),
]
if not torch.cuda.is_available():
    REFUSED.append(("device=cuda", "device='cuda': must be auto or cpu: there is no CUDA device here"))


@one_case
@pytest.mark.parametrize(("update", "message"), REFUSED)
def test_what_cannot_be_run_ends_with_one_line(update, message, tmp_path, monkeypatch, capsys):
    files = {"empty.txt": b"\n", "latin.txt": b"\xe9t\xe9", "short.txt": b"x" * 500, "fine.txt": b"x" * 2000}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpt2_prune.ex, "config_hooks", [*gpt2_prune.ex.config_hooks])
    monkeypatch.setattr(gpt2_prune.ex, "observers", [])
    updates = ["smoke", *([] if update.startswith("data=") else ["data=fine.txt"]), update]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "with", *updates])
    with pytest.raises(SystemExit) as stopped:
        lab.launch(gpt2_prune.ex)
    line = stopped.value.code  # text, which the interpreter prints before it ends with status 1
    assert isinstance(line, str)
    assert "\n" not in line
    assert line.startswith(message), line
    assert capsys.readouterr() == ("", "")
    assert {path.name for path in tmp_path.iterdir()} == set(files)


@pytest.mark.parametrize("name", [None, *gpt2_prune.ex.named_configs])
def test_the_configs_can_be_run(name, tmp_path):
    (tmp_path / "long.txt").write_text(3 * TEXT)
    given = gpt2_prune.Config.defaults()
    given |= gpt2_prune.ex.named_configs[name]() if name else {}
    gpt2_prune.Config(**(given | {"data": str(tmp_path / "long.txt"), "vocabulary": "bytes"}))
