"""Guards against models, tokenizers and templates from elsewhere, taken away one at a time."""

from __future__ import annotations

from .mutant import Mutant

LOADING, FOLDERS = "models/loading.py", "models/folders.py"
TEMPLATES, CHAT = "data/templates.py", "data/chat.py"
FOLDER_TESTS = ("models/test_folders.py",)
CHAT_TESTS = ("data/test_chat.py",)

MUTANTS = (
    Mutant(
        "missing_weights_are_made_up",
        LOADING,
        "    _check_whole(report, path, auto)\n",
        "",
        FOLDER_TESTS,
        "transformers warns, fills in random numbers and goes on",
    ),
    Mutant(
        "code_of_a_tokenizer_is_not_looked_for",
        FOLDERS,
        'folder.glob("*config.json")',
        'folder.glob("config.json")',
        FOLDER_TESTS,
        "remote code in tokenizer_config.json alone",
    ),
    Mutant(
        "links_lead_anywhere",
        FOLDERS,
        "is_relative_to(home)",
        "exists()",
        FOLDER_TESTS,
        "an unpacked archive whose tokenizer is a link to a private key",
    ),
    Mutant(
        "shards_lie_anywhere",
        FOLDERS,
        "if Path(name).name != name:",
        "if Path(name).is_absolute():",
        FOLDER_TESTS,
        "an index that names ../other/model.safetensors",
    ),
    Mutant(
        "ids_behind_the_embeddings",
        LOADING,
        "if i >= places and t != tokenizer.pad_token",
        "if i > places + 1 and t != tokenizer.pad_token",
        FOLDER_TESTS,
        "tokens added to a tokenizer and not to its model: an IndexError in the middle of a run",
    ),
    Mutant(
        "a_limit_takes_the_timer_of_others",
        TEMPLATES,
        "signal.setitimer(signal.ITIMER_REAL, *timer)",
        "signal.setitimer(signal.ITIMER_REAL, 0)",
        ("data/test_templates.py",),
        "somebody else's time limit never comes",
    ),
    Mutant(
        "hostile_templates_make_bad_rows",
        TEMPLATES,
        "except (SecurityError, RecursionError, MemoryError) as error:",
        "except (RecursionError, MemoryError) as error:",
        ("data/test_templates.py",),
        "with bad_rows=drop, an attack is a row left out",
    ),
    Mutant(
        "two_bos_of_one_template",
        CHAT,
        "rendered.startswith(2 * bos)",
        "rendered.startswith(3 * bos)",
        CHAT_TESTS,
        "a template that spells BOS out and writes bos_token before it",
    ),
    Mutant(
        "the_stop_token_of_a_template_without_answers",
        CHAT,
        "if SENTINEL not in rendered:",
        "if not rendered:",
        CHAT_TESTS,
        "EOS is trained where turns end with something else",
    ),
)
