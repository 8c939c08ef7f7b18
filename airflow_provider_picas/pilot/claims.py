"""Claims tokens."""

import collections
import itertools
import random
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from airflow_provider_picas.lifecycle import ids
from airflow_provider_picas.lifecycle.attempts import attempts_by_kind
from airflow_provider_picas.lifecycle.backoff import Backoff
from airflow_provider_picas.lifecycle.classes import class_name
from airflow_provider_picas.lifecycle.exit_codes import EX_NOPERM, Failed
from airflow_provider_picas.lifecycle.ids import batch_range
from airflow_provider_picas.lifecycle.json_values import Doc, number
from airflow_provider_picas.lifecycle.states import is_finished
from airflow_provider_picas.lifecycle.transitions import Token, claim
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.heads import NUMBERS, Head, Heads, own_views
from airflow_provider_picas.pilot.log import LogOnce, log
from airflow_provider_picas.pilot.portions import portions
from airflow_provider_picas.pilot.reporter import Reporter
from airflow_provider_picas.pilot.session import Session
from airflow_provider_picas.pilot.walk import Walk

MONITOR = f"_design/{ids.MONITOR}/_view/"
EMPTY_QUERIES, EMPTY_FOR = (
    5,
    15.0,
)  # in a cluster: empty queries, and seconds, before the pilot concludes that no tokens remain


class Claims:
    """Finds tokens in state todo and claims them. Used by one thread."""

    HEADS_LAST = 1.0  # seconds for which the highest priorities are cached
    AT_ONCE = 10  # tokens that a claim may always take, and a quarter of those wanted; more only as a share of those that wait
    SUSPECTS = 10  # tokens that are claimed together after one death; their pilot may have held many more
    # They are claimed together only if more deaths than this are allowed: the next one counts for all of them.
    SPARE_DEATHS = 2
    MOST_UNSETTLED = 1000
    CHECKS = 12  # checks of a claim that is not visible, with growing pauses; one check if it was refused as a conflict
    MOST_REFUSED = 100  # tokens that the database refuses to let the pilot claim, before its first successful claim
    NOT_TODO_FOR = 2.0  # seconds for which a view may show a token as todo that is not, before it is skipped
    NO_VIEWS = 60.0  # seconds for which a cluster may lack its views, as on a node that comes back

    def __init__(
        self, session: Session, cluster: bool, conflicts: Conflicts, reporter: Optional[Reporter] = None
    ) -> None:
        """``reporter``: its results are written in the requests of the claims."""
        self._session = session
        self._reporter = reporter
        self._database = session.database
        self._config = session.config
        self._profile = session.config.pool_profile()
        self._design = own_views(self._profile)
        self.cluster = cluster
        self._log_once = LogOnce()
        self._all_heads = Heads(session, self._log_once)
        self._walk = Walk(session, self._all_heads)
        self._heads: List[Head] = []
        self._heads_until = 0.0
        self._monitor_from = ""  # the row of Monitor/todo after which there was a token of the wanted classes
        self._useful = False  # the current take has found a token that it may claim
        self._in_share = False  # the candidates are from this pilot's share: those of the others are for them
        self._suspects: List[Doc] = []  # read by the last take, which found no others
        self._suspects_until = 0.0  # monotonic
        self._used_up: Set[str] = set()  # heads without tokens in this pilot's share
        self._conflicts = conflicts
        self._own_views_at = 0.0  # monotonic: when to query the missing views again
        self._no_views_since: Optional[float] = None
        self._reasons: Set[str] = set()  # for which the database refused claims
        self._not_todo: Dict[str, Tuple[str, float]] = {}  # by token in a view: its revision, and since when
        self.in_flight: List[Token] = []  # their claim was sent, and it is unknown whether it was carried out
        self._unsettled: Dict[str, Unsettled] = {}  # by token: claims in a cluster that are not known to stand
        # Candidates of the last take that were not claimed because
        self.contested = 0  # others were faster, or enough were claimed
        self.unfit = 0  # they would not fit into the wall-clock limit
        self.deferred = 0  # their pilots died, and this pilot has other tokens
        self.conflicts = 0  # in all claims: others were faster
        self._claimed = False  # True once a claim was written
        self._refusals: Dict[str, int] = collections.Counter()  # by token
        self._refusal = ""  # the last one
        self._most = (
            self._config.max_claim * self._config.slots
        )  # limit on the tokens of one claim, lower while pilots collide

    def take(self, wanted: int, fits: Callable[[Doc], bool], deaths: int) -> List[Token]:
        """Claim at most ``wanted`` tokens.

        A token whose pilots have died may also kill this one. It is claimed on its own, or after one death with a few
        others of its kind, so that other tokens do not suffer, and only if no more than ``deaths`` pilots died with it.
        Raises Unreachable; ``in_flight`` then holds tokens that may have been claimed.
        """
        self.contested = self.unfit = self.deferred = 0
        known = self._take_suspects(wanted, fits, deaths)
        return self._take_from_views(wanted, fits, deaths) if known is None else known

    def _take_from_views(self, wanted: int, fits: Callable[[Doc], bool], deaths: int) -> List[Token]:
        not_todo, self._useful, self._in_share = 0, False, False
        wanted = self._limit(wanted) if self._database.quorum.holds() else 1  # one claim shows if it holds again
        clean: List[Doc] = []
        suspects: List[Doc] = []
        seen: Set[str] = set()
        for docs in self._candidates(wanted):
            for doc in docs:
                if not self._profile.is_claimable(doc):
                    self._step_over(doc)
                    not_todo += 1
                    continue
                if doc["_id"] in seen or self._is_unsettled(doc["_id"]):
                    continue
                seen.add(doc["_id"])
                died = attempts_by_kind(doc)["reaped"]
                if not fits(doc):
                    self.unfit += 1
                elif not died:
                    clean.append(doc)
                elif died <= deaths:
                    suspects.append(doc)
                else:
                    self.deferred += 1
            self._useful = bool(clean or suspects or not_todo)
            if len(clean) >= (1 if self._in_share else wanted):
                break
        few = self._together(suspects, wanted)
        tokens = self._claim_first(clean[:wanted], few)
        self._suspects, self._suspects_until = [] if clean else suspects[len(few) :], time.monotonic() + self.HEADS_LAST
        self.contested = len(clean) + len(suspects) - len(tokens) + not_todo
        return tokens

    def _claim_first(self, clean: List[Doc], suspects: List[Doc]) -> List[Token]:
        """Claim a portion of the clean tokens, or of those whose pilots have died."""
        chosen = next(portions(clean), []) or next(portions(suspects), [])
        tokens = self._claim(chosen)
        if len(tokens) < len(chosen):
            self._walk.leave()
        if len(tokens) < 0.5 * len(chosen):
            self._most = max(1, len(chosen) // 2)
        else:
            self._most = min(self._most * 2, self._config.max_claim * self._config.slots)
        return tokens

    def _together(self, suspects: List[Doc], wanted: int) -> List[Doc]:
        """The first of these tokens, or a few of them: one pilot died with each, which had claimed many and ran one."""
        most = min(wanted, self.SUSPECTS) if self._config.max_scrubs > self.SPARE_DEATHS else 1
        once = itertools.takewhile(lambda doc: attempts_by_kind(doc)["reaped"] == 1, suspects)
        return list(itertools.islice(once, most)) or suspects[:1]

    def _take_suspects(self, wanted: int, fits: Callable[[Doc], bool], deaths: int) -> Optional[List[Token]]:
        """Claim more tokens of the last take, if that found only those that pilots died with: a dead pilot may leave
        many, and few are claimed at once. Empty if none may be claimed now; None: read what there is."""
        suspects, self._suspects = self._suspects, []
        if not suspects or time.monotonic() >= self._suspects_until:
            return None
        few = self._together(suspects, wanted if self._database.quorum.holds() else 1)
        if attempts_by_kind(few[0])["reaped"] > deaths:
            self._suspects, self.deferred = suspects, len(suspects)
            return []
        if not all(fits(doc) and not self._is_unsettled(doc["_id"]) for doc in few):
            return None
        tokens = self._claim(next(portions(few)))
        if not tokens:  # another pilot may have read the same ones
            return None
        self._suspects = suspects[len(few) :]
        return tokens

    def _limit(self, wanted: int) -> int:
        """Leaves tokens to the other pilots of the array when few wait, so that all end at about the same time."""
        todo, shares = self._all_heads.todo, self._session.me.share[1]
        share = wanted if todo is None else todo // (2 * shares)
        return min(wanted, self._most, max(self.AT_ONCE, wanted // 4, share))

    def _step_over(self, doc: Doc) -> None:
        """Skip a token that a view persistently shows as todo although it is not: there may be others after it."""
        name, now = doc["_id"], time.monotonic()
        rev, since = self._not_todo.get(name, ("", now))
        if rev != doc.get("_rev"):
            since = now
        self._not_todo = dict(list(self._not_todo.items())[-1000:])
        self._not_todo[name] = (doc.get("_rev", ""), since)
        if now - since >= self.NOT_TODO_FOR:
            self._database.skip_for(name, 60.0, waits=False)
            self._log_once(f"A view lists {name} as todo, but it is in another state. It is skipped.")

    def _candidates(self, wanted: int) -> Iterator[List[Doc]]:
        docs = self._walk.find(wanted)
        if docs:
            yield docs
        if not (docs and self._useful):
            yield from self._find(wanted)

    def _find(self, wanted: int) -> Iterator[List[Doc]]:
        """Candidates, highest priority first."""
        if time.monotonic() >= self._own_views_at:
            try:
                yield from self._find_by_priority(wanted)
                self._no_views_since = None
                return
            except Failed as error:
                if not self._profile.is_default:
                    raise  # the pool's own views are not known
                self._log_once(
                    f"{error} Using Monitor/todo instead: priorities apply only among the tokens of one request."
                )
                self._own_views_at = time.monotonic() + (2.0 if self.cluster else 60.0)
        try:
            yield from self._find_in_monitor(wanted)
            self._no_views_since = None
        except Failed as error:
            now = time.monotonic()
            self._no_views_since = self._no_views_since or now
            if self.cluster and now - self._no_views_since < self.NO_VIEWS:
                raise Unreachable(str(error), 404) from None
            raise

    def _find_by_priority(self, wanted: int) -> Iterator[List[Doc]]:
        while True:
            found, fresh, unreadable = False, time.monotonic() >= self._heads_until, self._database.skipped()
            if fresh:
                self._heads, self._heads_until = self._all_heads.read(), time.monotonic() + self.HEADS_LAST
                self._used_up.clear()
            self._walk.begin()
            while True:
                for head in self._heads:
                    for docs in self._find_at(head, max(wanted, 5)):
                        found = found or bool(docs)
                        yield docs
                if self._useful or self._all_heads.classes_after is None:
                    break
                self._heads = self._all_heads.read(self._all_heads.classes_after)
            if found or (fresh and unreadable == self._database.skipped()):
                return
            self._heads_until = 0.0  # the heads are gone, or cannot be read

    def _find_at(self, head: Head, limit: int) -> Iterator[List[Doc]]:
        """Search this pilot's share of the numbers within class and priority, then from a random place on, wrapping around.

        So pilots rarely collide: those of an array have a share each, until it is used up. Few tokens of it are better
        than more that others may claim at the same time.
        """
        key = head.key(self._config.batch)
        place, shares = self._session.me.share
        if shares > 1 and repr(key) not in self._used_up:
            low, high = (number * NUMBERS // shares for number in (place, place + 1))
            found = self._todo(limit, startkey=[*key, low], endkey=[*key, high], inclusive_end=False)
            if len(found) < limit:
                self._used_up.add(repr(key))
            self._in_share = True
            yield found
            self._in_share = False
        found = self._from_random_place(head, limit)
        yield found
        if found and all(attempts_by_kind(doc)["reaped"] for doc in found):
            # A dead pilot leaves neighbours, as many as it could claim: others are behind them.
            yield self._from_random_place(head, limit + self._config.max_claim * self._config.slots)

    def _from_random_place(self, head: Head, limit: int) -> List[Doc]:
        """Tokens of a head from a random one on. Some may be there twice."""
        batch = self._config.batch
        if head.tokens is not None and head.tokens <= limit:
            docs = self._todo(limit, **head.rows(batch))
            first = random.randrange(len(docs)) if docs else 0
            return docs[first:] + docs[:first]
        found: List[Doc] = []
        for limits in head.random_places(batch):
            if len(found) < limit:
                found += self._todo(limit - len(found), **limits)
        return found

    def _todo(self, limit: int, **limits: Any) -> List[Doc]:
        return self._database.documents(self._design + "todo", reduce=False, limit=limit, **limits)

    def _find_in_monitor(self, wanted: int) -> Iterator[List[Doc]]:
        """For a pool with only PiCaS's own views: a random choice of the first rows.

        These views have no classes. If only some classes are wanted, all rows are read, from the place where the last
        search found some: any number of other tokens may be before them.
        """
        limit, classes = max(100, 2 * wanted), self._config.classes
        limits = batch_range(self._config.batch)
        if classes is None:
            rows = self._database.rows(MONITOR + "todo", limit=limit, **limits)
            chosen = random.sample([row["id"] for row in rows], min(len(rows), max(2 * wanted, 10)))
            docs = [doc for doc in self._database.read(chosen).values() if doc] if chosen else []
            yield sorted(docs, key=lambda doc: -number(doc.get("priority")))
            return
        place, wrapped = self._monitor_from, not self._monitor_from
        while True:
            start = {"startkey": place} if place else {}
            docs, last = self._database.page(MONITOR + "todo", limit, least=2, **dict(limits, **start))
            docs = [doc for doc in docs if class_name(doc) in classes]
            if docs:
                self._monitor_from = place
                random.shuffle(docs)
                yield sorted(docs, key=lambda doc: -number(doc.get("priority")))
            if last is None and wrapped:
                self._monitor_from = ""
                return
            if last == place:
                raise Unreachable(f"{self._database.place} returned rows that are not in the order of a view", 200)
            place, wrapped, limit = last or "", wrapped or last is None, min(limit * 2, 1000)

    def _claim(self, docs: List[Doc]) -> List[Token]:
        if not docs:
            return []
        lock = int(self._session.clock.now())
        me = self._session.me
        claimed = [claim(doc, lock, me.pilot, me.hostname, me.job, self._profile) for doc in docs]
        self.in_flight = tokens = [Token(doc, self._profile) for doc in claimed]
        try:
            status, rows = self._write(tokens)
        except Unreachable:
            mine = self._landed(tokens)
            if not self.cluster:
                return mine
            self._doubt(mine)  # it may be stored on too few copies
            return []
        if status == 413:
            self.in_flight = []
            return self._claim_by_halves(docs)
        if not rows:  # refused as a whole, but some may have been written: release all
            if len(tokens) == 1:
                self._refused(tokens[0].id, f"HTTP {status}", final=False)
            self._most = 1
            raise Unreachable(f"{self._database.place} answers {status} to a claim", status)
        self.in_flight = []
        mine = self._written(tokens, rows)
        if self.cluster and mine:
            return self._standing(mine)
        if status == 202 and not mine:
            raise Unreachable(f"{self._database.place} answers 202 to a claim: too few of its nodes stored it", status)
        return mine

    def _write(self, tokens: List[Token]) -> Tuple[int, Dict[str, Doc]]:
        """Write claims, together with results that wait: half the requests. Raises Unreachable."""
        docs = [token.doc for token in tokens]
        along = self._reporter.take_along({token.id for token in tokens}) if self._reporter else []
        if self._reporter is None or not along:
            return self._database.bulk(docs)
        rows: Dict[str, Doc] = {}
        try:
            status, rows = self._database.bulk([*docs, *(change.apply() for change in along)])
        finally:
            self._reporter.note_along(rows)
        if not rows:  # a result may be the cause: the reporter sends them one by one
            raise Unreachable(f"{self._database.place} answers {status} to claims and results", status)
        return status, rows

    def _claim_by_halves(self, docs: List[Doc]) -> List[Token]:
        """Claim tokens that are too large together for one request, and skip those that are too large on their own."""
        half = len(docs) // 2
        if not half:
            self._database.skip(docs[0]["_id"], "is too large to be claimed")
            return []
        mine = self._claim(docs[:half])
        try:
            return mine + self._claim(docs[half:])
        except Unreachable:
            if not mine:
                raise
            return mine  # the next claim shows whether this lasts

    def _landed(self, tokens: List[Token]) -> List[Token]:
        """The claims that were carried out although the response was lost. The others stay in flight: they may still be."""
        docs = self._database.read([token.id for token in tokens])
        mine = []
        for token in tokens:
            doc = docs.get(token.id)
            if doc and token.is_claimed_in(doc):
                token.doc["_rev"] = doc["_rev"]
                mine.append(token)
        self.in_flight = [token for token in tokens if token not in mine]
        return mine

    def _written(self, tokens: List[Token], rows: Dict[str, Doc]) -> List[Token]:
        """The claims that were written safely, by the rows of the response."""
        mine = []
        for token in tokens:
            row = rows.get(token.id, {})
            if row.get("rev"):
                token.doc["_rev"] = row["rev"]
                if row.get("accepted"):
                    self._doubt([token])
                else:
                    mine.append(token)
            elif row.get("error") == "conflict":
                self.conflicts += 1
                if self.cluster:  # one node may have stored it, so it may win
                    self._doubt([token], beaten=True)
            else:
                error = str(row.get("error"))
                final = error in ("forbidden", "unauthorized")
                self._refused(token.id, f"{error}: {row.get('reason')}", final)
        self._claimed = self._claimed or bool(mine)
        if not self._claimed and len(self._refusals) >= self.MOST_REFUSED:
            raise Failed(self.refusal(), EX_NOPERM)
        return mine

    def _refused(self, name: str, why: str, final: bool) -> None:
        """Skip a token that the database does not allow this pilot to claim: permanently, or for a while."""
        self._refusals[name] += 1
        self._refusal = why
        final = final or self._refusals[name] >= 3
        self._database.skip_for(name, float("inf") if final else 20.0)
        if len(self._reasons) < 100 and why not in self._reasons:
            self._reasons.add(why)
            log(
                f"The database does not allow this pilot to claim {name} ({why:.500}). The pilot continues with other tokens."
            )

    def refusal(self) -> str:
        """Why not a single token could be claimed; empty otherwise."""
        if self._claimed or not self._refusals:
            return ""
        return (
            f"{self._database.place} does not allow this login to claim any token ({self._refusal:.500})."
            " Ask an admin of the database for write access"
        )

    # In a cluster two nodes may both accept a claim. Once the nodes have synchronized, one of the revisions wins, the same
    # everywhere. After a 202, a lost response, or a conflict, nothing is written to the token until writes reach most of its
    # copies again and it was read from them: then a claim that lost is deleted, and one that won is written once more.

    def _doubt(self, tokens: Sequence[Token], beaten: bool = False) -> None:
        for token in tokens:
            if token.id not in self._unsettled or not beaten:
                self._unsettled[token.id] = Unsettled(token, beaten)
        for name in list(self._unsettled)[: -self.MOST_UNSETTLED]:
            del self._unsettled[name]

    def total(self) -> Optional[int]:
        """The number of tokens in a copy of the database, in any state; None if the views do not show it."""
        try:
            # In a profile, ``counts`` also has rows for the whole pool, and may have lists as values.
            view = "counts" if self._profile.is_default else "tokens"
            batch = self._config.batch
            keys = {} if batch is None else {"startkey": [batch], "endkey": [batch, {}]}
            return self._database.sum(self._design + view, **keys)
        except Failed:
            return None

    def _is_unsettled(self, name: str) -> bool:
        return name in self._unsettled and not self._unsettled[name].beaten

    def unsettled(self) -> bool:
        """True if there are claims that may turn out to stand."""
        return any(not entry.beaten and entry.seen for entry in self._unsettled.values())

    def settle(self) -> List[Token]:
        """Check again the claims that are not known to stand. Returns those that do. Raises Unreachable."""
        now = time.monotonic()
        due = [entry for entry in self._unsettled.values() if now >= entry.next_check][:200]
        if not due or not self._database.quorum.holds():
            return []
        branches = self._database.branches([entry.token.id for entry in due])
        won = []
        for entry in due:
            stands = self._stands(entry.token, branches.get(entry.token.id, []), entry)
            entry.checked()
            if stands:
                won.append(entry.token)
            elif stands is False or (not entry.seen and entry.checks >= (1 if entry.beaten else self.CHECKS)):
                self._unsettled.pop(entry.token.id, None)
        return self._claim_again(won)

    def _claim_again(self, tokens: List[Token]) -> List[Token]:
        """Write the winning claims again. Later reads then come from the copies that have them."""
        if not tokens:
            return []
        rows = self._database.bulk([token.doc for token in tokens])[1]
        safe = []
        for token in tokens:
            row = rows.get(token.id, {})
            if row.get("rev"):
                token.doc["_rev"] = row["rev"]
                if not row.get("accepted"):
                    safe.append(token)
        return self._standing(safe)

    def _standing(self, mine: List[Token]) -> List[Token]:
        """The claims, of those written safely, that stand. Raises Unreachable: then they will be checked again."""
        self._doubt(mine)
        branches = self._database.branches([token.id for token in mine])
        standing = []
        for token in mine:
            stands = self._stands(token, branches.get(token.id, []), self._unsettled[token.id])
            if stands is not None:
                del self._unsettled[token.id]
            if stands:
                standing.append(token)
        return standing

    def _stands(self, token: Token, branches: List[Doc], entry: "Unsettled") -> Optional[bool]:
        """True if an unstarted claim stands among the revisions of the token; None: not known yet."""
        place = next((place for place, doc in enumerate(branches) if token.is_claimed_in(doc)), None)
        entry.seen = place is not None
        if place is None:
            return None
        if place > 0:
            self._database.delete(branches[place])  # another one won
            return False
        doc = self._conflicts.settle(branches)
        if doc is None:
            entry.beaten = False  # the pilot that runs it under another revision will end at some time
            return None
        token.doc["_rev"] = doc["_rev"]
        return token.is_claimed_in(doc) and not is_finished(doc)


class Unsettled:
    """A claim that is not known to stand, and when to check it again."""

    def __init__(self, token: Token, beaten: bool) -> None:
        self.token = token
        self.beaten = beaten  # it was refused as a conflict
        self.seen = not beaten  # it was among the token's revisions at the last check
        self.checks = 0
        self._pause = Backoff(1.0, 60.0)
        self.next_check = time.monotonic() + (1.0 if beaten else 0.0)  # the nodes synchronize within moments

    def checked(self) -> None:
        """Record a check, and plan the next one."""
        self.checks += 1
        self.next_check = time.monotonic() + (self._pause.pause() if not self.seen else 2.0)
