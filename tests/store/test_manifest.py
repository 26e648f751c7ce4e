"""What a manifest says: digests, fingerprints, staleness and what to build next, on plain data."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.store.artefacts import ARTEFACTS
from antpipe.store.manifest import (
    Manifest,
    Standing,
    changed_input,
    content_sha256,
    digest,
    encoder_name,
    fingerprint,
    id_table_sha256,
    inputs_of,
    standing,
)

RICH = {"with_text": 1.0, "with_image_url": 1.0, "with_image_file": 1.0, "interactions": 9}


def intact(_: str) -> str:
    return ""


def add(manifest: Manifest, artefact: str, **parameters: Any) -> None:
    """The entry that a run of the artefact's stage would write now."""
    kind = ARTEFACTS[artefact]
    made = fingerprint(artefact, parameters, manifest)
    manifest[artefact] = {
        "fingerprint": made,
        "stage": kind.command,
        "stage_version": kind.version,
        "parameters": parameters,
        "inputs": inputs_of(artefact, manifest),
        "input_files": {name: content_sha256(manifest[name]) for name in kind.inputs if name != "items"},
        "files": {name: {"bytes": 1, "sha256": made} for name in kind.files},
    }


def manifest_of(*artefacts: str, statistics: dict[str, float] | None = None) -> Manifest:
    manifest: Manifest = {}
    add(manifest, "items", format="table")
    manifest["items"]["statistics"] = RICH if statistics is None else statistics
    for artefact in artefacts:
        add(manifest, artefact)
    return manifest


words = st.text(max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(words, json_values, max_size=5))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


@given(st.lists(st.text(), max_size=5), st.lists(st.text(), max_size=5))
def test_different_id_tables_have_different_hashes(first: list[str], second: list[str]) -> None:
    assert (id_table_sha256(first) == id_table_sha256(second)) == (first == second)


def test_a_fingerprint_is_that_of_stage_version_parameters_and_inputs() -> None:
    """The form is fixed: artefacts of every earlier version rest on it."""
    manifest = {"items": {"fingerprint": "1"}, "pictures": {"fingerprint": "2"}}
    inputs = {"items": "1", "pictures": "2"}
    assert fingerprint("image", {"dims": 3}, manifest) == digest(["embed-image", 1, {"dims": 3}, inputs])
    assert fingerprint("text", {}, manifest) == digest(["embed-text", 1, {}, {"items": "1"}])


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_what_was_just_built_is_fresh(artefact: str) -> None:
    before = [name for name in ARTEFACTS[artefact].inputs if name != "items"]
    manifest = manifest_of(*before, *([artefact] if artefact != "items" else []))
    assert standing(artefact, manifest, intact) == Standing("fresh")


def test_an_optional_input_that_appears_makes_its_artefact_stale() -> None:
    manifest = manifest_of("image")
    add(manifest, "pictures")
    assert standing("image", manifest, intact) == Standing("stale", "pictures changed since", "image")


def test_an_artefact_made_from_a_stale_one_is_stale_and_the_other_one_is_built_first() -> None:
    manifest = manifest_of("text", "text-white")
    add(manifest, "items", format="amazon")
    manifest["text-white"]["inputs"]["items"] = manifest["items"]["fingerprint"]
    assert standing("text-white", manifest, intact) == Standing("stale", "text is stale", "text")


def test_an_input_with_other_content_under_the_same_fingerprint_makes_its_artefact_stale() -> None:
    manifest = manifest_of("text", "text-white")
    manifest["text"]["files"]["text.arrow"]["sha256"] = "other"
    why = "text was computed again since, with other results"
    assert standing("text-white", manifest, intact) == Standing("stale", why, "text-white")


def test_a_damaged_artefact_is_built_by_force() -> None:
    manifest = manifest_of("price")
    damage = {"price": "price.arrow: cut off"}
    assert standing("price", manifest, lambda name: damage.get(name, "")) == Standing(
        "stale", "price.arrow: cut off", "price", force=True
    )


def test_damage_to_an_input_forces_the_input_alone() -> None:
    manifest = manifest_of("text", "text-white")
    damage = {"text": "text.arrow: cut off"}
    assert standing("text-white", manifest, lambda name: damage.get(name, "")) == Standing(
        "stale", "text is stale", "text", force=True
    )


def test_an_incomplete_artefact_is_partial() -> None:
    manifest = manifest_of("pictures")
    manifest["pictures"]["incomplete"] = "3 of 9 URLs"
    assert standing("pictures", manifest, intact) == Standing("partial", "3 of 9 URLs", "pictures")


@pytest.mark.parametrize(
    ("artefact", "lacking", "why"),
    [
        ("text", ["with_text"], "no item has a text"),
        ("pictures", ["with_image_url"], "no image URLs"),
        ("image", ["with_image_url", "with_image_file"], "no item has a picture or an image URL"),
        ("sequences", ["interactions"], "a catalogue without interactions"),
    ],
)
def test_what_the_items_cannot_give_is_missing_without_anything_to_build(
    artefact: str, lacking: list[str], why: str
) -> None:
    manifest = manifest_of(statistics=RICH | dict.fromkeys(lacking, 0))
    assert standing(artefact, manifest, intact) == Standing("missing", why)
    assert standing(artefact, manifest_of(), intact).build == artefact
    assert standing(artefact, manifest_of(statistics={}), intact).build == artefact  # not counted then


def test_pictures_are_fetched_before_they_are_embedded() -> None:
    manifest = manifest_of(statistics=RICH | {"with_image_file": 0})
    assert standing("image", manifest, intact) == Standing("missing", build="pictures")


def test_whitened_features_are_not_missed() -> None:
    assert standing("text-white", manifest_of("text"), intact) == Standing("missing", "built on request")


def test_an_input_that_changed_while_an_artefact_was_built_is_named() -> None:
    manifest = manifest_of("text", "text-white")
    entry = manifest["text-white"]
    assert changed_input(entry, manifest) is None
    manifest["text"]["files"]["text.arrow"]["sha256"] = "other"
    assert changed_input(entry, manifest) == "text"
    add(manifest, "items", format="amazon")
    assert changed_input(entry, manifest) == "items"
    assert changed_input(entry, {}) == "items"


def test_an_encoder_is_named_with_what_changes_its_vectors() -> None:
    made_by = {"name": "mini", "revision": "0123456789abcdef", "variant": "prompt query"}
    assert encoder_name({"encoder": made_by}) == "mini (revision 0123456789ab, prompt query)"
    made_by["whitening"] = "f" * 64
    assert encoder_name({"encoder": made_by}).endswith(", whitened (fit ffffffffffff)")
    price = {"encoding": "onehot", "bins": 4, "scope": "domain"}
    assert encoder_name({"parameters": price}) == "onehot of 4 bins, scope domain"
    together = price | {"scope": "global", "fitted_on": {"A": "1"}}
    assert encoder_name({"parameters": together}) == f"onehot of 4 bins, scope global (fit {digest({'A': '1'})[:12]})"
