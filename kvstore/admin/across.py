"""Commands of `store-admin` that ask every node of the cluster, from whichever one is called.

In JSON they are alike: "nodes" has a row for every node, with the problem of one that has not answered, and "sum" (or
what the command is about) speaks of those that have. A node that stands alone is a cluster of one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from kvstore.admin import copies, rows, sums
from kvstore.admin.chains import chain_message
from kvstore.admin.face import EXIT_FOUND, Context, chain_options, pass_context, the_one
from kvstore.wire import admin, store

FAMILIES_MAX: Final = 10_000
HOLDINGS_MAX: Final = 262_144  # keys of all nodes together, for one count
HOLDINGS_MIN: Final = 1_024  # of a node
HOLDINGS_MS: Final = 8_000  # a node looks at every slot for it

of_nodes = click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NODE",
    help="This one alone: its name, address or id, or self. Repeatable.",
)


def _alone(told: list[admin.NodeAnswer]) -> bool:
    return len(told) == 1


def _title(what: str, told: list[admin.NodeAnswer]) -> str:
    if _alone(told):
        return f"{what} of {sums.name_of(told[0].node)}"
    return f"{what}: {len(sums.answered(told))} of {len(told)} nodes"


def _missing(told: list[admin.NodeAnswer]) -> None:
    for line in rows.unanswered(told):
        click.echo(f"no answer: {line}")


@click.command()
@of_nodes
@pass_context
def status(context: Context, nodes: tuple[str, ...]) -> None:
    """What the cluster is and holds, node by node; of one node, where it listens, too."""
    told = context.ask(admin.Question(status=admin.StatusRequest()), nodes)
    table, whole = sums.status_of_nodes(told), sums.status_sum(told)
    if context.tell({"sum": whole, "nodes": table}):
        return
    if _alone(told):
        context.details({name: value for name, value in table[0].items() if name not in {"address", "problem"}})
        return
    context.details({name: value for name, value in whole.items() if name != "claims_bytes"})
    context.show("nodes", table, sums.STATUS_COLUMNS)
    _missing(told)


@click.command()
@of_nodes
@pass_context
def tiers(context: Context, nodes: tuple[str, ...]) -> None:
    """Each tier: how large, how full, what has happened to it."""
    told = context.ask(admin.Question(tiers=admin.TiersRequest()), nodes)
    table = sums.tiers_of_nodes(told)
    whole = sums.tier_sums(told, [list(one.answer.tiers.tiers) for one in sums.answered(told)])
    if context.tell({"sum": whole, "nodes": table}):
        return
    context.show(_title("tiers", told), whole, rows.TIER_COLUMNS)
    for row in table if _alone(told) else ():
        click.echo(rows.happened(row))
    if not _alone(told):
        context.show("nodes", table, sums.TIER_COLUMNS)
        _missing(told)


@click.command()
@of_nodes
@pass_context
def hits(context: Context, nodes: tuple[str, ...]) -> None:
    """Blocks asked for and found since the nodes started, by namespace and by node.

    A get is counted once, at its client's own node, wherever the blocks lay. far: found at other nodes than that.
    """
    told = context.ask(admin.Question(hits=admin.HitsRequest()), nodes)
    whole, table, total = sums.hits_sum(told), sums.hits_of_nodes(told), sums.total(told)
    if context.tell({"total": total, "sum": whole, "nodes": table}):
        return
    context.show(_title("hits", told), whole, rows.HIT_COLUMNS)
    if not _alone(told):
        context.show("nodes", [*table, {"node": "all", "state": None, **total}], sums.HIT_COLUMNS)
        _missing(told)


@click.command()
@click.option("--top", default=20, show_default=True, type=click.IntRange(1, 1000))
@of_nodes
@pass_context
def families(context: Context, top: int, nodes: tuple[str, ...]) -> None:
    """The prefixes (or labels) asked for most, over all nodes, and how often they were found."""
    told = context.ask(admin.Question(families=admin.FamiliesRequest(rows_max=FAMILIES_MAX)), nodes)
    whole = sums.families_sum(told, top)
    if context.tell({"sum": whole, "nodes": sums.families_of_nodes(told)}):
        return
    context.show(_title("families", told), whole, rows.FAMILY_COLUMNS)
    _missing(told)


@click.command(name="nodes")
@pass_context
def nodes_(context: Context) -> None:
    """The nodes of the cluster as this one sees them, alive, suspect or dead, and what room each says that it has."""
    seen = context.call("Nodes", admin.NodesRequest(), admin.NodesResponse)
    told = context.ask(admin.Question(status=admin.StatusRequest()))
    table = sums.room_of_nodes(told)
    drains = ("drain",) if any(row["drain"] for row in table) else ()
    context.show("nodes", table, (*sums.ROOM_COLUMNS, *drains))
    if not context.as_json and len({row["clears"] for row in table} - {None}) > 1:
        click.echo("not all nodes know of the same clears yet")
    if not context.as_json:
        click.echo(rows.discovery_told(seen))
        _missing(told)


@click.command()
@click.option("--all", "everything", is_flag=True, help="Those that are alike everywhere, too.")
@of_nodes
@pass_context
def settings(context: Context, everything: bool, nodes: tuple[str, ...]) -> None:
    """What nodes must agree on, and in what else they differ. Credentials are told by an id, never themselves."""
    told = context.ask(admin.Question(settings=admin.SettingsRequest()), nodes)
    found = sums.settings(told)
    if context.tell({"sum": found, "nodes": sums.by_node(told, {}, ())}):
        return
    shown = sums.settings_shown(found, everything)
    columns = ("setting", "value", "nodes")
    context.show("what must agree", [row for row in shown if row["must_agree"]], columns)
    rest = [row for row in shown if not row["must_agree"]]
    context.show("every other setting" if everything else "what differs otherwise", rest, columns)
    _missing(told)


# ---- blocks ----------------------------------------------------------------------------------------------------------


@click.command()
@chain_options()
@pass_context
def locate(context: Context, namespace: str, tokens: Path | None, keys: str | None) -> None:
    """Which nodes hold which blocks of a chain, on which tiers: as the directory claims, and as they say themselves.

    Exit code 1 if no node has any.
    """
    located, told = _everywhere(context, namespace, chain_message(tokens, keys))
    found = copies.holders(located, told)
    document = {
        "blocks": [block.key.hex() for block in located.blocks],
        "holders": found,
        "nodes": sums.by_node(told, {}, ()),
    }
    if not context.tell(document):
        context.show("holders", copies.holders_shown(found), copies.PLACE_COLUMNS)
        click.echo(copies.located_told(len(located.blocks), found))
        _missing(told)
    if not any(row["held"] for row in found):
        sys.exit(EXIT_FOUND)


@click.command()
@chain_options(required=False)
@pass_context
def replicas(context: Context, namespace: str | None, tokens: Path | None, keys: str | None) -> None:
    """How many blocks have how many copies in memory and files, on distinct hosts and on distinct nodes.

    By namespace, told by the nodes that hold them: exactly, or of a sample, and it says which. With --tokens or --keys:
    of that prompt.
    """
    of_prompt = tokens is not None or keys is not None
    if of_prompt:
        if namespace is None:
            raise ValueError("--namespace: needed with --tokens and --keys")
        _, told = _everywhere(context, namespace, chain_message(tokens, keys))
        counted = copies.Copies(copies.of_chain(told), copies.WHOLE)
    else:
        told = _holdings(context, namespace)
        counted = copies.of_holdings(told)
    sampled: dict[str, object] = {"exact": counted.exact, "sampled_share": counted.share}
    if context.tell({**sampled, "sum": counted.rows, "nodes": sums.by_node(told, {}, ())}):
        return
    columns = copies.COPY_COLUMNS[3:] if of_prompt else copies.COPY_COLUMNS
    context.show("copies", counted.rows, columns)
    if counted.exact:
        click.echo("exact: every block that the nodes told of was counted")
    else:
        click.echo(f"sampled: of {counted.share:.2%} of all blocks, those with the smallest keys")
    _missing(told)


def _holdings(context: Context, namespace: str | None) -> list[admin.NodeAnswer]:
    seen = context.call("Nodes", admin.NodesRequest(), admin.NodesResponse)
    keys_max = max(HOLDINGS_MAX // len(seen.nodes), HOLDINGS_MIN)
    digest = _digest_anywhere(context, namespace)[0] if namespace is not None else b""
    question = admin.Question(holdings=admin.HoldingsRequest(namespace=digest, keys_max=keys_max))
    return context.ask(question, within_ms=HOLDINGS_MS)


def _digest_anywhere(context: Context, text: str) -> tuple[bytes, str]:
    """A namespace that is open at some node, and a name of one where it is: the one that is called if possible."""
    told = context.ask(admin.Question(namespaces=admin.NamespacesRequest()))
    have = sums.answered(told)
    digest = the_one(text, [row.digest for one in have for row in one.answer.namespaces.rows])
    there = next(one for one in have if any(row.digest == digest for row in one.answer.namespaces.rows))
    return digest, "self" if there.node.self else there.node.id.hex()


def _everywhere(
    context: Context, namespace: str, chain: store.Chain
) -> tuple[admin.LocateResponse, list[admin.NodeAnswer]]:
    """Of a chain: its keys and claims, and what every node has of it."""
    digest, where = _digest_anywhere(context, namespace)
    question = admin.LocateRequest(namespace=digest, chain=chain, with_claims=True)
    (one,) = context.ask(admin.Question(locate=question), [where])
    located = one.answer.locate
    whole = store.Chain(keys=b"".join(block.key for block in located.blocks), position=chain.position)
    again = admin.LocateRequest(namespace=digest, chain=whole, known_only=True)
    return located, context.ask(admin.Question(locate=again))


COMMANDS: Final = (status, nodes_, tiers, hits, families, settings, locate, replicas)
