"""The sections of a report, from findings and the store. A section whose data are missing says what it lacks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from antpipe.comparison.plan import UNTRAINED
from antpipe.errors import AntpipeError
from antpipe.evaluation.vectors import OpenRun
from antpipe.features.subset import drawn_from
from antpipe.report.arms import arms_figure, differences_figure
from antpipe.report.blocks import Block, Lines, Missing, Numbers, Panel, Section, Sizes, Table, Users
from antpipe.report.curves import curve_figure, remarks_of
from antpipe.report.figure import listed, metric_name, shortened
from antpipe.report.findings import SPLIT, Findings, Judged
from antpipe.report.item_map import map_figure, map_of
from antpipe.report.parts import beyond_figure, slices_figure
from antpipe.report.shops import Shop, coverage_figure, describe, price_figure
from antpipe.report.training import training_figure
from antpipe.report.transfer import transfer_figures
from antpipe.report.users import Pictures, examples_of, open_as_judged
from antpipe.report.verdict import remarks_on
from antpipe.runtime.logs import log
from antpipe.settings.report import ReportConfig
from antpipe.store.next_command import spell
from antpipe.store.store import Store

Found = Section | Missing
SIZES = {"users": "users", "positions": "test positions", "items": "items"}
TABLED = ("recall@10", "ndcg@10", "mrr@10", "recall@50")
MOST_TARGETS = 24  # targets with panels of their own; all are in the verdict
MOST_OPENED = 6  # domains with a map and example users: the vectors of their runs are computed
MOST_LETTERS = 1000  # characters of a remark
ARMS_OF_USERS = 2  # whose recommendations a user is shown with


def arms_section(found: Findings, numbers: Numbers) -> Found:
    """Per target, the arms with every seed, their differences to the control, all figures, and remarks."""
    title = "Arms"
    panels = []
    for one in found.judged[:MOST_TARGETS]:
        blocks: list[Block] = [Sizes(sizes_of(one)), numbers.drawn(arms_figure(one))]
        if difference := differences_figure(one):
            blocks.append(numbers.drawn(difference))
        blocks.append(Lines([shortened(line, MOST_LETTERS) for line in remarks_on(one)]))
        blocks += [arm_table(one, protocol) for protocol in protocols_of(one)]
        panels.append(Panel(one.label, blocks))
    if not panels:
        runs = next(iter(found.loose.items()), None)
        command = spell("evaluate", domains=[runs[0]], flags=["--run", runs[1][0]]) if runs else ""
        return Missing(title, "no run was evaluated on the test split", command)
    left = len(found.judged) - len(panels)
    more = f" {left} more targets are in the verdict only." if left else ""
    return Section("arms", title, f"What each arm reaches on each target.{more}", panels)


def protocols_of(one: Judged) -> list[str]:
    """The protocols of a target, that of the verdict first."""
    there = list(next(iter(one.arms.values()))["protocols"])
    return sorted(there, key=lambda protocol: protocol != one.rules["protocol"])


def arm_table(one: Judged, protocol: str) -> Table:
    """All arms with the usual metrics and the verdict."""
    rows = []
    for name, arm in one.arms.items():
        cells = []
        for metric in TABLED:
            figure = arm["protocols"][protocol].get(metric)
            spread = f" ± {figure['std']:.4f}" if figure and figure["std"] is not None else ""
            cells.append(f"{figure['mean']:.4f}{spread}" if figure else "")
        seeds = "" if arm["kind"] == UNTRAINED else str(arm["seeds"])
        word = [(arm["verdict"] or {}).get("word") or ""] if one.verdicts() else []
        rows.append([name, seeds, *cells, *word])
    caption = f"All figures, protocol {protocol}: mean ± standard deviation over seeds"
    head = ["arm", "seeds", *(metric_name(metric) for metric in TABLED), *(["verdict"] if one.verdicts() else [])]
    return Table(caption, head, rows, filtered=len(rows) > 12, folded=True)


def sizes_of(one: Judged) -> str:
    """The sizes of a target, in words."""
    return " · ".join(f"{one.facts[key]:,} {word}" for key, word in SIZES.items() if one.facts.get(key) is not None)


def untested(found: Findings, store: Store) -> list[Missing]:
    """The command that tests differences between runs, if some were not tested."""
    for one in found.judged:
        here = {arm: paths for arm, paths in one.folders.items() if paths and one.arms[arm]["kind"] != UNTRAINED}
        if one.finished or one.control not in here or len(here) < 2 or one.target not in store.domains():
            continue
        flags = ["--target", one.target, "--arms", ",".join(here)]
        for arm, paths in here.items():
            flags += ["--run", f"{arm}={','.join(map(str, paths))}"]
        command = spell("compare", store=store.root, flags=[*flags, "--out", "compare"])
        return [Missing("Verdict on transfer", "these runs were not compared", command)]
    return []


def transfer_section(found: Findings, store: Store, numbers: Numbers) -> Found:
    """Heat maps of sources and targets."""
    title = "Transfer between shops"
    figures = transfer_figures(found.judged, found.outcomes)
    if figures:
        panels = [Panel(name, [numbers.drawn(figure)]) for name, figure in figures.items()]
        return Section("transfer", title, "How much every source helps on every target.", panels)
    why = "no comparison left sources out, or started from several"
    return Missing(title, why, leaving_out(found, store))


def leaving_out(found: Findings, store: Store) -> str:
    """The command of a comparison that leaves sources out; '' if the store has too few shops."""
    target, others = target_and_others(found, store)
    if target is None or len(others) < 2:
        return ""
    flags = ["--target", target, "--sources", ",".join(others), "--leave-one-out", "--out", "compare-sources"]
    return spell("compare", store=store.root, flags=flags)


def target_and_others(found: Findings, store: Store) -> tuple[str | None, list[str]]:
    """A target that is in the store, and the other domains that could be sources."""
    ready = [name for name in store.domains() if "sequences" in store.domain(name).manifest()]
    target = next((one.target for one in found.judged if one.target in ready), None)
    taken = {drawn_from(store, one.target) for one in found.judged}
    return target, [name for name in ready if drawn_from(store, name) == name and name not in taken]


def curves_section(found: Findings, store: Store, numbers: Numbers) -> Found:
    """Learning curves."""
    title = "Learning curves"
    if found.curves:
        panels = [
            Panel(
                name,
                [numbers.drawn(curve_figure(name, curve, outcome)), Lines(remarks_of(curve, outcome))],
            )
            for name, (curve, outcome) in found.curves.items()
        ]
        return Section("curves", title, "What each arm reaches with fewer users of the target.", panels)
    target, others = target_and_others(found, store)
    command = ""
    if target is not None and others:
        users = store.domain(target).table("users", ["user"]).num_rows
        sizes = ",".join(str(max(1, users // part)) for part in (4, 2, 1))
        flags = ["--target", target, "--sources", ",".join(others), "--target-users", sizes, "--out", "curve"]
        command = spell("compare", store=store.root, flags=flags)
    return Missing(title, "no comparison was made at several numbers of users (--target-users)", command)


def training_section(found: Findings, numbers: Numbers) -> Found:
    """Losses by epoch."""
    title = "Training"
    panels = [
        Panel(one.label, [numbers.drawn(figure)])
        for one in found.judged[:MOST_TARGETS]
        if (figure := training_figure(one)) is not None
    ]
    if panels:
        return Section("training", title, "How the loss of each arm fell while it was trained.", panels)
    return Missing(title, "no trained run of these arms is here, so there are no losses by epoch")


def slices_section(found: Findings, numbers: Numbers) -> Found:
    """Parts of the test split."""
    title = "Who is served well"
    panels = [
        Panel(one.label, [numbers.drawn(figure)])
        for one in found.judged[:MOST_TARGETS]
        if (figure := slices_figure(one)) is not None
    ]
    if panels:
        about = (
            "New and known items, head and tail, short and long histories, items that lack a picture, text or price."
        )
        return Section("slices", title, about, panels)
    return Missing(title, "the evaluations of these runs are not here, so there are no figures by slice")


def beyond_section(found: Findings, store: Store, numbers: Numbers) -> Found:
    """Properties of the recommended lists beyond accuracy."""
    title = "Beyond accuracy"
    panels = [
        Panel(one.label, [numbers.drawn(figure)])
        for one in found.judged[:MOST_TARGETS]
        if (figure := beyond_figure(one)) is not None
    ]
    if panels:
        return Section("beyond", title, "What the recommended lists are like, whatever the target item is.", panels)
    single = next((one for one in found.judged if not one.finished and any(one.folders.values())), None)
    if single is None:
        return Missing(title, "not measured: repeat the compare command with --beyond-accuracy")
    run = next(paths[0] for paths in single.folders.values() if paths)
    flags: list[str | Path] = ["--run", run, "--beyond-accuracy"]
    return Missing(title, "not measured", spell("evaluate", domains=[single.target], store=store.root, flags=flags))


def catalogue_section(found: Findings, store: Store, numbers: Numbers) -> Found:
    """Sizes, coverage and prices of the domains that are in the store."""
    title = "Catalogues"
    here = [name for name in found.domains() if name in store.domains()]
    if not here:
        return Missing(title, f"store {store.root} has none of {listed(found.domains())}; name theirs with --store")
    shops = [describe(store.domain(name)) for name in here[:MOST_TARGETS]]
    panels = [Panel("Sizes", [sizes_table(shops), numbers.drawn(coverage_figure(shops))])]
    prices = [(shop.name, figure) for shop in shops if (figure := price_figure(shop)) is not None]
    panels += [Panel(f"Prices of {name}", [numbers.drawn(figure)]) for name, figure in prices]
    return Section("catalogues", title, "The shops that the runs read.", panels)


def sizes_table(shops: Sequence[Shop]) -> Table:
    head = ["shop", "users", "items", "interactions", "per user"]
    rows = [
        [
            shop.name,
            f"{shop.users:,}",
            f"{shop.items:,}",
            f"{shop.interactions:,}",
            f"{shop.interactions / shop.users:.1f}" if shop.users else "",
        ]
        for shop in shops
    ]
    return Table("Sizes of the shops", head, rows)


# -- what needs the vectors of a run ----------------------------------------------------------------------------------


def opened_sections(
    found: Findings, store: Store, config: ReportConfig, numbers: Numbers, pictures: Pictures
) -> list[Found]:
    """The maps of items and the example users, for the runs that are here with their domain."""
    maps: list[Panel] = []
    users: list[Panel] = []
    why = ""
    wanted = runs_to_open(found) if config.map_items or config.users else {}
    for label, (domain, protocol, runs) in list(wanted.items())[:MOST_OPENED]:
        try:
            opened = {arm: open_as_judged(store, run, domain) for arm, run in runs.items()}
            first = next(iter(opened))
            if config.map_items and len(opened[first].items) > 1:
                figure = map_figure(map_of(opened[first], config.map_items, config.seed), label, first)
                maps.append(Panel(label, [numbers.drawn(figure, searched=True)]))
            if config.users:
                users.append(Panel(label, [users_block(opened, config, pictures, protocol)]))
        except AntpipeError as error:
            log.warning(f"{label}: neither map nor example users: {error.message}")
            why = why or error.message
    absent = why or "no finished run of these arms is here with its domain"
    found_maps: Found = Missing("Map of the items", absent if config.map_items else "left out: --map-items 0")
    found_users: Found = Missing("Example users", absent if config.users else "left out: --users 0")
    if maps:
        about = "Every point is an item. Point at one to read its title, or search for words."
        found_maps = Section("map", "Map of the items", about, maps)
    if users:
        found_users = Section("users", "Example users", about_users(config, pictures), users)
    return [found_maps, found_users]


def runs_to_open(found: Findings) -> dict[str, tuple[str, str, Mapping[str, Path]]]:
    """By label: a domain, its protocol, and by arm the runs to open: the best arm first, then the control."""
    wanted: dict[str, tuple[str, str, Mapping[str, Path]]] = {}
    for one in found.judged:
        here = {arm: paths[0] for arm in one.trained() if (paths := one.folders[arm])}
        best = list(here)
        others = [one.control, *best[1:]] if one.control in best[1:] else best[1:]
        arms = [*best[:1], *others][:ARMS_OF_USERS]
        if arms:
            wanted[one.label] = (one.target, one.rules["protocol"], {arm: here[arm] for arm in arms})
    judged = {one.target for one in found.judged}
    for domain, runs in found.loose.items():
        if domain not in judged:
            wanted[domain] = (domain, "all", {runs[0].resolve().name: runs[0]})
    return wanted


def users_block(opened: Mapping[str, OpenRun], config: ReportConfig, pictures: Pictures, protocol: str) -> Users:
    shown, users = examples_of(opened, config.users, config.k, config.seed, pictures, protocol=protocol)
    hits = sum(one.hit for one in shown)
    about = (
        f"{len(shown)} of {users:,} {SPLIT} positions, drawn at random (seed {config.seed}). For {hits} of them, "
        f"what was bought next is among the first {config.k} of {' or '.join(opened)}."
    )
    return Users(about, shown)


def about_users(config: ReportConfig, pictures: Pictures) -> str:
    said = "What users bought, what they are recommended, and what they bought next."
    said += f" {counted(pictures.missing)} gone or damaged." if pictures.missing else ""
    said += f" {counted(pictures.left)} left out, for size." if pictures.left else ""
    return said if config.pictures else f"{said} Pictures were left out (--no-pictures)."


def counted(pictures: int) -> str:
    return "1 picture is" if pictures == 1 else f"{pictures:,} pictures are"
