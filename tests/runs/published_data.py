"""Tiny data of every task in the forms in which they are published, and what they say."""

import json
from typing import Any, NamedTuple

from deberta_jax.configs.finetune.goemotions import EMOTIONS


class Form(NamedTuple):
    """One form of a task's data.

    Attributes:
        files: contents by name; empty where `records` are TFDS's.
        train: the source to train and to measure on; files are seen from their folder.
        labels: what the examples of it say, in order.
        changes: fields of the config that this form needs, by dotted name.
        records: (TFDS's name, records) of a data set.
        counted: what the start of the run has to mention.
        test: a source without labels, if the form has one.
    """

    files: dict[str, str]
    train: str
    labels: list[Any]
    changes: dict[str, Any] | None = None
    records: tuple[str, list[dict]] | None = None
    counted: str = ""
    test: str = ""


def tfds(name: str, labels: list[Any], *records: dict) -> Form:
    return Form({}, f"tfds:{name}:train", labels, records=(name, list(records)))


def json_lines(*objects: dict) -> str:
    return "".join(json.dumps(each) + "\n" for each in objects)


def table(*rows: str) -> str:
    """Rows with "|" for tabs."""
    return "".join(row.replace("|", "\t") + "\n" for row in rows)


NLI = [
    {"premise": "A dog runs.", "hypothesis": "It moves."},
    {"premise": "A dog runs.", "hypothesis": "It sleeps."},
    {"premise": "A dog runs.", "hypothesis": "It is old."},
]
PARSES = "sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse"
MNLI_HEADER = f"index|promptID|pairID|genre|{PARSES}|sentence1|sentence2|label1|gold_label"
PASSAGE = {
    "article": "Ann has a red hat.\nBob has none.",
    "questions": ["Who has a hat?", "Bob has _ ."],
    "options": [["Ann", "Bob", "Eve", "Dan"], ["one", "two", "three", "none"]],
    "answers": ["A", "D"],
}
PAIR = {"question1": "How old is it?", "question2": "What is its age?"}
STORY = (
    "mc500.train.0|Author: x; Work Time(s): 1|It was hot.\\newlineAnn\\tabate.|one: Who ate?|Ann"
    "|Bob|Eve|Dan|multiple: Was it hot?|no|yes|maybe|never|one: Who slept?|Ann|Bob|Eve|Dan"
    "|one: What did Ann do?|eat|run|sit|go"
)
QUESTION = {
    "id": "q1",
    "title": "Hats",
    "context": "Ann has a red hat.",
    "question": "Whose is it?",
    "answers": {"text": ["Ann"], "answer_start": [0]},
}
ANSWERS = [{"text": "Ann", "answer_start": 0}]


def squad(version: str, *questions: dict) -> str:
    paragraphs = [{"context": QUESTION["context"], "qas": list(questions)}]
    return json.dumps({"version": version, "data": [{"title": "Hats", "paragraphs": paragraphs}]})


ASKED = {"id": "q1", "question": "Whose is it?", "answers": ANSWERS}
EMOTIONS_OFF = dict.fromkeys(EMOTIONS, False)
TAGS = ["B-LOC", "O", "O"]

FORMS: dict[str, dict[str, Form]] = {
    "cola": {
        "tfds": tfds(
            "glue/cola",
            ["1", "0"],
            {"sentence": "They drank the pub dry.", "label": 1, "idx": 0},
            {"sentence": "They drank the pub.", "label": 0, "idx": 1},
        ),
        "glue": Form(
            {
                "train.tsv": table("gj04|1||They drank it.", "gj04|0|*|They drank the pub."),
                "test.tsv": table("index|sentence", "0|Bill whistled."),
            },
            "train.tsv",
            ["1", "0"],
            test="test.tsv",
        ),
    },
    "mnli": {
        "tfds": tfds(
            "glue/mnli",
            ["entailment", "contradiction", "neutral"],
            *({**NLI[row], "label": label, "idx": 0} for row, label in enumerate((0, 2, 1))),
        ),
        "glue": Form(
            {
                "train.tsv": table(
                    MNLI_HEADER,
                    '0|1|1n|fiction|( a )|( b )|(S a)|(S b)|He "so.|He spoke.|neutral|entailment',
                    "1|2|2n|fiction|( a )|( b )|(S a)|(S b)|It ran.|It sat.|neutral|contradiction",
                )
            },
            "train.tsv",
            ["entailment", "contradiction"],
        ),
        "nyu": Form(
            {
                "multinli_1.0_train.jsonl": json_lines(
                    {"gold_label": "neutral", "sentence1": "It ran.", "sentence2": "It sat."},
                    {"gold_label": "-", "sentence1": "It ran.", "sentence2": "It stood."},
                )
            },
            "multinli_1.0_train.jsonl",
            ["neutral"],
            counted="examples whose label is '-', left out: 1",
        ),
    },
    "mrpc": {
        "tfds": tfds(
            "glue/mrpc",
            ["1"],
            {"sentence1": "It ran.", "sentence2": "So it ran.", "label": 1, "idx": 0},
        ),
        "msr": Form(
            {
                "msr_paraphrase_train.txt": "\ufeff"
                + table(
                    "Quality|#1 ID|#2 ID|#1 String|#2 String\r",
                    '1|702876|702977|Amrozi called him "the witness.|He called him that.\r',
                    "0|2108705|2108831|It was sold in 1996.|It was bought in 1995.\r",
                )
            },
            "msr_paraphrase_train.txt",
            ["1", "0"],
            {"task.format": "tsv"},
        ),
    },
    "qnli": {
        "tfds": tfds(
            "glue/qnli",
            ["not_entailment"],
            {"question": "When?", "sentence": "It ran.", "label": 1, "idx": 0},
        ),
        "glue": Form(
            {"train.tsv": table("index|question|sentence|label", "0|When?|In May.|entailment")},
            "train.tsv",
            ["entailment"],
        ),
    },
    "qqp": {
        "tfds": tfds("glue/qqp", ["1"], {**PAIR, "label": 1, "idx": 0}),
        "glue": Form(
            {
                "train.tsv": table(
                    "id|qid1|qid2|question1|question2|is_duplicate",
                    "133273|213221|213222|How is it?|How was it?|1",
                    "402555|536040|536041|How do I mend it?",
                    "213221|1|2|What?|Who?|0",
                )
            },
            "train.tsv",
            ["1", "0"],
            counted="rows with another number of cells, left out: 1",
        ),
    },
    "rte": {
        "tfds": tfds(
            "glue/rte",
            ["entailment"],
            {"sentence1": "It ran.", "sentence2": "It moved.", "label": 0, "idx": 0},
        ),
        "glue": Form(
            {"train.tsv": table("index|sentence1|sentence2|label", "0|It.|Not.|not_entailment")},
            "train.tsv",
            ["not_entailment"],
        ),
        "superglue": Form(
            {"train.jsonl": json_lines({**NLI[0], "label": "entailment", "idx": 0})},
            "train.jsonl",
            ["entailment"],
        ),
    },
    "sst2": {
        "tfds": tfds("glue/sst2", ["1"], {"sentence": "a fine film ", "label": 1, "idx": 0}),
        "glue": Form(
            {"train.tsv": table("sentence|label", "hide new secretions |0", "that loves |1")},
            "train.tsv",
            ["0", "1"],
        ),
    },
    "stsb": {
        "tfds": tfds(
            "glue/stsb",
            [2.5],
            {"sentence1": "It ran.", "sentence2": "It sat.", "label": 2.5, "idx": 0},
        ),
        "glue": Form(
            {
                "train.tsv": table(
                    "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score",
                    "0|main|MSRvid|2012test|0001|none|none|A plane.|An air plane.|5.000",
                )
            },
            "train.tsv",
            [5.0],
        ),
        "benchmark": Form(
            {
                "sts-train.csv": table(
                    "main-captions|MSRvid|2012test|0001|5.000|A plane, off.|An air plane.",
                    "main-news|headlines|2015|0002|3.800|It ran.|It sat.|http://a.b|http://c.d",
                )
            },
            "sts-train.csv",
            [5.0, 3.8],
            {
                "task.format": "tsv",
                "task.header": (
                    "genre", "file", "year", "index", "score", "sentence1", "sentence2",
                ),
                "task.uneven_rows": "keep",
            },
            counted="rows with another number of cells, only the named cells read: 1",
        ),
    },
    "wnli": {
        "tfds": tfds(
            "glue/wnli",
            ["0"],
            {"sentence1": "It ran.", "sentence2": "It moved.", "label": 0, "idx": 0},
        ),
        "glue": Form(
            {"train.tsv": table("index|sentence1|sentence2|label", "0|It ran.|A dog ran.|1")},
            "train.tsv",
            ["1"],
        ),
    },
    "anli": {
        "tfds": tfds(
            "anli/r3",
            ["c"],
            {"uid": "u", "context": "It ran.", "hypothesis": "It sat.", "label": 2},
        ),
        "files": Form(
            {
                "train.jsonl": json_lines(
                    {"uid": "u", "context": "It ran.", "hypothesis": "It sat.", "label": "n"}
                )
            },
            "train.jsonl",
            ["n"],
        ),
    },
    "boolq": {
        "tfds": tfds(
            "super_glue/boolq",
            ["True"],
            {"question": "is it", "passage": "It is.", "idx": 0, "label": 1},
        ),
        "files": Form(
            {
                "train.jsonl": json_lines(
                    {"question": "is it", "passage": "It is.", "idx": 0, "label": True},
                    {"question": "is it", "passage": "No.", "idx": 1, "label": False},
                )
            },
            "train.jsonl",
            ["True", "False"],
        ),
    },
    "cb": {
        "tfds": tfds("super_glue/cb", ["neutral"], {**NLI[0], "idx": 0, "label": 2}),
        "files": Form(
            {"train.jsonl": json_lines({**NLI[1], "label": "contradiction", "idx": 0})},
            "train.jsonl",
            ["contradiction"],
        ),
    },
    "wic": {
        "tfds": tfds(
            "super_glue/wic",
            ["False"],
            {
                "word": "place", "sentence1": "A place.", "sentence2": "Place it.", "idx": 0,
                "start1": 2, "end1": 7, "start2": 0, "end2": 5, "label": 0,
            },
        ),
        "files": Form(
            {
                "train.jsonl": json_lines(
                    {"word": "place", "sentence1": "A place.", "sentence2": "Put.", "label": True}
                )
            },
            "train.jsonl",
            ["True"],
        ),
    },
    "copa": {
        "tfds": tfds(
            "super_glue/copa",
            [1],
            {
                "premise": "It rained.", "choice1": "Dry.", "choice2": "Wet.",
                "question": "effect", "idx": 0, "label": "choice2",
            },
        ),
        "files": Form(
            {
                "train.jsonl": json_lines(
                    {
                        "premise": "It rained.", "choice1": "Wet.", "choice2": "Dry.",
                        "question": "effect", "label": 0, "idx": 0,
                    }
                )
            },
            "train.jsonl",
            [0],
        ),
    },
    "race": {
        "files": Form(
            {
                "RACE/train/high/1.txt": json.dumps({**PASSAGE, "id": "high1.txt"}),
                "RACE/train/middle/2.txt": json.dumps({**PASSAGE, "id": "middle2.txt"}),
            },
            "RACE/train/*/*.txt",
            [0, 3, 0, 3],
            {"task.format": "json"},
        ),
    },
    "swag": {
        "files": Form(
            {
                "train.csv": ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,"
                "ending1,ending2,ending3,label\n"
                '0,anet_x,1,He sits. He,He sits.,He,gold,"runs, then stops.",eats.,"says ""no"".",'
                "goes.,2\n"
            },
            "train.csv",
            [2],
        ),
    },
    "mctest": {
        "files": Form(
            {"mc500.train.tsv": table(STORY), "mc500.train.ans": table("A|B|C|A")},
            "mc500.train.tsv",
            [0, 1, 2, 0],
        ),
    },
    "squad": {
        "tfds": tfds("squad/v1.1", [["Ann"]], QUESTION),
        "files": Form({"train-v1.1.json": squad("1.1", ASKED)}, "train-v1.1.json", [["Ann"]]),
    },
    "squad_v2": {
        "tfds": tfds(
            "squad/v2.0",
            [["Ann"]],
            QUESTION
            | {"is_impossible": False, "plausible_answers": {"text": [], "answer_start": []}},
        ),
        "files": Form(
            {
                "train-v2.0.json": squad(
                    "v2.0",
                    ASKED | {"is_impossible": False},
                    {
                        "id": "q2", "question": "Why?", "answers": [], "is_impossible": True,
                        "plausible_answers": ANSWERS,
                    },
                )
            },
            "train-v2.0.json",
            [["Ann"], []],
        ),
    },
    "conll2003": {
        "tfds": tfds(
            "conll2003",
            [TAGS],
            {
                "tokens": ["Paris", "is", "old"], "pos": ["NNP", "VBZ", "JJ"],
                "chunks": ["B-NP", "B-VP", "B-ADJP"], "ner": TAGS,
            },
        ),
        "files": Form(
            {
                "eng.train": "-DOCSTART- -X- O O\n\nParis NNP I-NP B-LOC\nis VBZ I-VP O\n"
                "old JJ I-ADJP O\n\nU.N. NNP I-NP B-ORG\n10\u00a0000 CD I-NP O\n\n"
            },
            "eng.train",
            [TAGS, ["B-ORG", "O"]],
            {"task.format": "conll"},
        ),
        "conll": Form(
            {"train.CONLL": "-DOCSTART-\nParis NNP I-NP B-LOC\n. . O O\n"},
            "train.CONLL",
            [["B-LOC", "O"]],
        ),
    },
    "goemotions": {
        "tfds": tfds(
            "goemotions",
            [["anger", "joy"], []],
            EMOTIONS_OFF | {"comment_text": "Well!", "anger": True, "joy": True},
            EMOTIONS_OFF | {"comment_text": "Well."},
        ),
        "files": Form(
            {"train.tsv": table("Shit, I bought it.|2,17|eebb", "Fine.|27|eebc")},
            "train.tsv",
            [["anger", "joy"], ["neutral"]],
        ),
    },
    "custom": {
        "csv": Form(
            {"train.csv": "id,text,label\n1,good,yes\n2,bad,no\n"}, "train.csv", ["yes", "no"]
        ),
        "upper": Form(
            {"TRAIN.CSV": "text,label\r\ngood,1\r\nbad,2\r\n"}, "TRAIN.CSV", ["1", "2"]
        ),
        "pandas records": Form(
            {
                "train.json": json.dumps(
                    [{"text": "good", "label": "a"}, {"text": "bad", "label": "b"}], indent=1
                )
            },
            "train.json",
            ["a", "b"],
        ),
        "pandas lines": Form(
            {"train.json": json_lines({"text": "c", "label": 0}, {"text": "d", "label": 1})},
            "train.json",
            ["0", "1"],
        ),
        "quoted tabs": Form(
            {"train.tsv": 'text\tlabel\n"good ""film""\nindeed"\ta\nbad\tb\n'},
            "train.tsv",
            ["a", "b"],
            {"task.format": "quoted_tsv"},
        ),
    },
}  # fmt: skip
