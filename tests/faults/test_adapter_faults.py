"""Adapters and heads: what is saved is what was trained, however it is opened, and the reference of
a stage on a fine-tuned model is that model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import SilentError, fire, stage_folder, succeeded, truing
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from faults.matrix import MATRIX
from truing.models import loading

PROBE = torch.tensor([[5, 9, 200, 33, 100, 47, 60, 2]])
LORA = ["--model.lora.rank", "4", "--model.save-dtype", "float32"]
STAGES = list(MATRIX["T5"][1])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """What an sft stage with adapters leaves."""
    folder = tmp_path_factory.mktemp("tuned") / "out"
    succeeded(truing("sft", folder, *LORA))
    return stage_folder("sft", folder)


def that_runs(model):
    """What is about to be saved is weights in a shell; here in a model that nobody saved."""
    made = loading.load_causal("random:llama", torch.float32)
    weights = {name: t for name, t in model.state_dict().items() if not t.is_meta}
    assert not made.base_model.load_state_dict(model.base_model.state_dict()).missing_keys
    made.load_state_dict(weights, strict=False)
    return made


def spy_on_saved_and_reference() -> None:
    """Keeps what the model says of the probe as it is saved, what a head weighs, and the first
    reference log-probs with the tokens they are of."""
    from safetensors.torch import save_file

    from truing.batch import Batch
    from truing.models import saving

    save_policy, save_scorer, save_head = saving.save_policy, saving.save_scorer, saving.save_head
    with_columns = Batch.with_columns

    def keep(name, **tensors):
        fire()
        save_file({k: t.detach().contiguous().clone() for k, t in tensors.items()}, name)

    def policy(folder, model, *rest):
        with torch.no_grad():
            keep("saved", logits=that_runs(model)(PROBE).logits)
        save_policy(folder, model, *rest)

    def scorer(folder, model, head, *rest):
        with torch.no_grad():
            states = that_runs(model).base_model(PROBE).last_hidden_state
            keep("saved", scores=head(states))
        save_scorer(folder, model, head, *rest)

    def own_head(path, head):
        keep(path.name, **dict(head.named_parameters()))
        save_head(path, head)

    def columns(self, **new):
        if "reference_logps_N" in new and not Path("reference").exists():
            keep(
                "reference",
                tokens_T=self.tokens_T,
                group_T=self.group_T,
                branch_T=self.branch_T,
                group_C=self.group_C,
                target_N=self.target_N,
                completion_N=self.completion_N,
                logps_N=new["reference_logps_N"],
            )
        return with_columns(self, **new)

    saving.save_policy, saving.save_scorer, saving.save_head = policy, scorer, own_head
    Batch.with_columns = columns


def reference_logps(model, batch) -> torch.Tensor:
    """Log-probs of the batch's completions as transformers computes them, one after another."""
    found = []
    for completion, group in enumerate(batch["group_C"].tolist()):
        prompt = batch["tokens_T"][(batch["group_T"] == group) & (batch["branch_T"] == 0)]
        answer = batch["tokens_T"][batch["target_N"][batch["completion_N"] == completion]]
        ids = torch.cat([prompt, answer])
        with torch.no_grad():
            table = model(ids[None]).logits[0].log_softmax(-1)
        found.append(table[len(prompt) - 1 : -1].gather(1, answer[:, None])[:, 0])
    return torch.cat(found)


def same_bits(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.equal(found, expected):
        raise SilentError(f"{what}: {(found - expected).abs().max()} apart")


@pytest.mark.fault("T5")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's question
@pytest.mark.parametrize("adapted", [True, pytest.param(False, marks=pytest.mark.full)])
@pytest.mark.parametrize("stage", STAGES)
def test_what_was_trained_is_saved_and_compared_with_what_it_came_from(stage, adapted, out, tuned):
    flags = LORA if adapted else LORA[2:]
    succeeded(truing(stage, out, *flags, model=str(tuned), plant=[spy_on_saved_and_reference]))
    run, seen = stage_folder(stage, out), out.parent
    saved = load_file(seen / "saved")
    if stage == "reward":
        opened = loading.load_scorer(str(run), torch.float32)
        states = opened.base_model(PROBE).last_hidden_state
        scores = torch.nn.functional.linear(states, opened.score.weight).squeeze(-1)
        same_bits("scores after loading", scores, saved["scores"])
    else:
        opened = loading.load_causal(str(run), torch.float32)
        same_bits("logits after loading", opened(PROBE).logits, saved["logits"])
        _reference_is(tuned, load_file(seen / "reference"))
    if stage == "ppo":
        value = load_file(run / "value" / "value_head.safetensors")
        assert value["weight"].any()
        for name, tensor in load_file(seen / "value_head.safetensors").items():
            same_bits(f"value head's {name}", value[name], tensor)
    if adapted:
        _adapter_is(stage, run, tuned)


def _reference_is(tuned: Path, batch) -> None:
    model = AutoModelForCausalLM.from_pretrained(tuned).eval()
    expected = reference_logps(model, batch)
    if not torch.allclose(batch["logps_N"], expected, rtol=1e-5, atol=1e-5):
        raise SilentError(f"the reference is {(batch['logps_N'] - expected).abs().max()} off")
    bare = reference_logps(loading.load_causal("random:llama", torch.float32), batch)
    assert (bare - expected).abs().max() > 1e-2, "the bare model would not be told apart"


def _adapter_is(stage: str, run: Path, tuned: Path) -> None:
    """The adapter on the model it was trained on, merged by peft, is the saved model."""
    base = AutoModelForCausalLM.from_pretrained(tuned)
    merged = PeftModel.from_pretrained(base, run / "adapter").merge_and_unload().eval()
    kind = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    opened = kind.from_pretrained(run).eval()
    with torch.no_grad():
        found, expected = (m.base_model(PROBE).last_hidden_state for m in (merged, opened))
    same_bits("the merged adapter", found, expected)
    if stage == "reward":
        head = load_file(run / "adapter" / "score_head.safetensors")["weight"]
        same_bits("the score head", opened.score.weight.detach(), head)
