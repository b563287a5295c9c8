"""Planted bugs: each switches one rule of claims, producers or verdicts off, in the real code."""

from __future__ import annotations

from typing import Final

from tests.storage.mutants import Edit, Mutant

CLAIMS = "rlog.decisions.claims"
APPENDS = "rlog.decisions.appends"
CONSUMERS = "rlog.decisions.consumers"
DESK = "rlog.decisions.desk"
TRANSACTIONS = "rlog.decisions.transactions"
MEMBERS = "rlog.decisions.members"
DISPATCH = "rlog.dispatch:Dispatch"

# The judge is "schedules", or "sharing" (of shared consumers), "model" (of their dispatch), or
# "directed", by the test that ``first`` names.
MUTANTS: Final = (
    # --- the races ----------------------------------------------------------------------------
    Mutant(
        "two claimers both hold",
        "schedules",
        (
            Edit(
                f"{DESK}:Desk.check_free",
                "claim.holder is not None and self.is_held((log.id, name), claim)",
                "False",
            ),
        ),
    ),
    Mutant(
        "two exclusive producers both own the log",
        "schedules",
        (
            Edit(
                f"{CLAIMS}:take",
                "desk.check_free(ask.log, ask.name, claim)",
                'ask.name == "@producer" or desk.check_free(ask.log, ask.name, claim)',
            ),
        ),
    ),
    Mutant(
        "a paused holder that wakes after a takeover commits",
        "schedules",
        (
            Edit(
                f"{DESK}:Desk.held_cursor",
                "grant is None or grant.epoch != cursor.epoch or epoch != cursor.epoch",
                "grant is None",
            ),
        ),
    ),
    Mutant(
        "a paused owner appends with frames under way",
        "schedules",
        (
            Edit(
                f"{APPENDS}:check_fence",
                "grant is None or grant.epoch != owner.epoch or epoch != owner.epoch",
                "owner.holder is None",
            ),
        ),
    ),
    Mutant(
        "a retry whose reply was lost is appended again",
        "schedules",
        (
            Edit(
                f"{APPENDS}:append",
                "entry is not None and sequence + count - 1 <= entry.last",
                "False",
            ),
            Edit(
                f"{APPENDS}:_check_sequence",
                "last = entry.last if entry is not None else -1",
                "last = sequence - 1 if after is None else after",
            ),
        ),
    ),
    Mutant(
        "a retry whose reply was lost is a conflict",
        "directed",
        (
            Edit(
                f"{APPENDS}:append",
                "entry is not None and sequence + count - 1 <= entry.last",
                "False",
            ),
        ),
        "test_a_reply_that_was_lost_after_its_frame_was_synced_is_given_again",
    ),
    Mutant(
        "a member killed with a record in hand fails nothing",
        "schedules",
        (
            Edit(
                "rlog.state:State._change",
                "cursor.holder is not None and not cursor.held",
                "False",
            ),
        ),
    ),
    Mutant(
        "a redrive while the consumer runs puts its record down",
        "directed",
        (
            Edit(
                "rlog.state:_settle",
                "failed, cursor.hand = cursor.parked[offset], None",
                "failed = cursor.parked[offset]\n                cursor.put_down()",
            ),
        ),
        "test_a_verdict_on_a_redriven_record_leaves_what_was_begun_at_the_cursor",
    ),
    Mutant(
        "a redrive while the consumer runs is not told to it",
        "directed",
        (Edit(f"{CONSUMERS}:_recall", "desk.effects.append(tell)", "pass"),),
        "test_a_redrive_while_the_consumer_is_at_work_leaves_its_record_alone",
    ),
    Mutant(
        "a verdict falls on a parked record that was not redriven",
        "directed",
        (
            Edit(
                f"{CONSUMERS}:settle_redriven",
                "parked is None or not parked.redriven",
                "parked is None",
            ),
        ),
        "test_what_was_not_redriven_is_not_delivered_again",
    ),
    Mutant(
        "a seek under a holder needs no force",
        "schedules",
        (Edit(f"{CONSUMERS}:seek", "desk.free_cursor(", "desk.cursor("),),
    ),
    Mutant(
        "a seek leaves the epoch",
        "schedules",
        (Edit(f"{CONSUMERS}:seek", "cursor.epoch + 1", "cursor.epoch"),),
    ),
    Mutant(
        "retries are not recognised after a restart",
        "schedules",
        (
            Edit(
                "rlog.state:State.apply",
                "each.owner.held = False",
                "each.owner.held = False; each.producers.clear()",
            ),
        ),
    ),
    Mutant(
        "a commit's fence is that of its arrival",
        "schedules",
        (
            Edit(
                f"{DESK}:Desk.held_cursor",
                "grant.epoch != cursor.epoch or epoch != cursor.epoch",
                "epoch != grant.epoch",
            ),
        ),
    ),
    Mutant(
        "an append's fence is that of its arrival",
        "schedules",
        (
            Edit(
                f"{APPENDS}:check_fence",
                "grant.epoch != owner.epoch or epoch != owner.epoch",
                "epoch != grant.epoch",
            ),
        ),
    ),
    Mutant(
        "the epoch of a name is not compared",
        "schedules",
        (
            Edit(
                f"{APPENDS}:check_fence",
                "entry is not None and named and epoch != entry.epoch",
                "False and entry is not None",
            ),
        ),
    ),
    # --- who holds, and who comes next --------------------------------------------------------
    Mutant(
        "whoever comes back too late gets a claim of its own",
        "schedules",
        (
            Edit(
                f"{CLAIMS}:take",
                "    if control.epoch:\n        raise F",
                "    if 0:\n        raise F",
            ),
        ),
    ),
    Mutant(
        "nobody has first right after a restart",
        "schedules",
        (Edit(f"{CLAIMS}:take", "ask.key in books.returning", "False"),),
    ),
    Mutant(
        "after a restart anybody passes the owner",
        "schedules",
        (Edit(f"{APPENDS}:check_fence", "key in desk.books.returning", "False"),),
    ),
    Mutant(
        "the first right is for ever",
        "directed",
        (Edit(f"{DESK}:Books.ring", "del self.returning[key]", "continue"),),
        "test_when_the_first_right_is_over_whoever_waited_gets_the_claim",
    ),
    Mutant(
        "the old connection keeps its grant when its member comes back",
        "schedules",
        (Edit(f"{CLAIMS}:_come_back", "del before.grants[key]", "pass"),),
    ),
    Mutant(
        "a takeover ends the claim of whoever has come back since",
        "directed",
        (
            Edit(
                f"{CLAIMS}:claim_anew",
                "desk.effects.append(books.ending(key))",
                "desk.effects.append(lambda: books.ending(key)())",
            ),
        ),
        "test_one_that_took_over_and_comes_back_in_the_same_frame_holds_and_the_old_one_is_told",
    ),
    Mutant(
        "a release behind a claim in one frame is that of the claim before",
        "directed",
        (
            Edit(
                f"{CLAIMS}:_give_up",
                "claimed is not None and claimed[0] is peer",
                "epoch is None and claimed is not None and claimed[0] is peer",
            ),
        ),
        "test_a_release_behind_a_claim_anew_in_the_same_frame_ends_that_one",
    ),
    Mutant(
        "nobody is called when a claim ends with its connection",
        "schedules",
        (Edit(f"{CLAIMS}:_give_up", "desk.effects.append(lambda: books.call(key))", "pass"),),
    ),
    Mutant(
        "a newcomer passes the standbys",
        "directed",
        (Edit(f"{CLAIMS}:take", "not held and ask.key in books.waiting", "False"),),
        "test_a_newcomer_in_the_frame_of_a_release_does_not_pass_a_standby",
    ),
    Mutant(
        "tickets follow the wall clock",
        "directed",
        (
            Edit(
                f"{CLAIMS}:_wait",
                "max(desk.now_ns, books.ticket + 1, _ticket(queue[-1]) + 1 if queue else 0)",
                "desk.now_ns",
            ),
        ),
        "test_standbys_keep_their_order_when_the_wall_clock_is_put_back",
    ),
    Mutant(
        "a standby that waits no longer is not answered",
        "directed",
        (
            Edit(
                f"{DESK}:Books.stop_waiting",
                "peer.answer(waiting.request, protocol.error_control(error))",
                "pass",
            ),
        ),
        "test_a_standby_that_waits_no_longer_is_told_so",
    ),
    # --- what is counted ----------------------------------------------------------------------
    Mutant(
        "a takeover of one who is there fails its record",
        "schedules",
        (
            Edit(
                "rlog.state:State._change",
                "cursor.holder is not None and not cursor.held",
                "cursor.holder is not None",
            ),
        ),
    ),
    Mutant(
        "of several in hand the first fails",
        "schedules",
        (
            Edit(
                "rlog.state:Cursor.vanished",
                "self.begun == self.committed + 1",
                "self.begun > self.committed",
            ),
        ),
    ),
    Mutant(
        "an evict fails the record in hand",
        "schedules",
        (
            Edit(
                "rlog.state:State._change",
                "lapsed and isinstance(claim, Cursor)",
                "isinstance(claim, Cursor)",
            ),
        ),
    ),
    Mutant(
        "the time in hand runs out though the record was put down",
        "schedules",
        (
            Edit(
                f"{CLAIMS}:lapse",
                "grant is not None and grant.in_hand is not None and key not in desk.books.hands",
                "True",
            ),
        ),
    ),
    Mutant(
        "a lapse fails nothing",
        "schedules",
        (
            Edit(
                "rlog.state:State._change",
                "lapsed and isinstance(claim, Cursor)",
                "False and isinstance(claim, Cursor)",
            ),
        ),
    ),
    Mutant(
        "a delay follows the wall clock",
        "directed",
        (
            Edit(
                f"{DESK}:Desk.wait_seconds",
                "max(0.0, self.books.due.get((*key, offset), self.now) - self.now)",
                "max(0.0, (failed.failed_ns + failed.delay_ns - self.now_ns) / 1e9)",
            ),
        ),
        "test_a_delay_is_by_the_monotonic_clock",
    ),
    # --- what is put aside --------------------------------------------------------------------
    Mutant(
        "a seek back leaves redriven records redriven",
        "schedules",
        (
            Edit(
                "rlog.state:State._change",
                "parked.redriven = parked.redriven and parked_at < offset",
                "pass",
            ),
        ),
    ),
    Mutant(
        "a paused consumer forgets its streak",
        "directed",
        (
            Edit(
                "rlog.state:_put_aside",
                "cursor.paused is None and (not fact.cause or fact.cause != cursor.cause)",
                "not fact.cause or fact.cause != cursor.cause",
            ),
        ),
        "test_while_it_is_paused_nothing_but_a_success_forgets_the_streak",
    ),
    Mutant(
        "a success resumes and redrives nothing",
        "schedules",
        (Edit("rlog.state:Cursor.resume", "self.redrive(self.streak)", "pass"),),
    ),
    # --- producers ----------------------------------------------------------------------------
    Mutant(
        "a fenced producer is told that its successor's records are its own",
        "schedules",
        (Edit(f"{APPENDS}:append", "_check_own(log, entry, original, epoch)", "pass"),),
    ),
    Mutant(
        "a batch behind one that was refused passes for the next",
        "directed",
        (Edit(f"{APPENDS}:_check_sequence", "after is not None and after != last", "False"),),
        "test_what_is_behind_a_refused_batch_is_refused_too",
    ),
    Mutant(
        "producers are forgotten by the wall clock",
        "schedules",
        (
            Edit(
                f"{APPENDS}:_note_heard",
                "(log_id, producer), desk.now)",
                "(log_id, producer), desk.now_ns / 1e9)",
            ),
        ),
    ),
    Mutant(
        "expectations are tested before retries are recognised",
        "directed",
        (
            Edit(
                f"{APPENDS}:append",
                "entry is not None and sequence + count - 1 <= entry.last",
                "entry is not None and sequence + count - 1 <= entry.last "
                "and control.expect in (None, log.end)",
            ),
        ),
        "test_a_retry_is_recognised_before_the_expectation_is_tested",
    ),
    # --- transactions -------------------------------------------------------------------------
    Mutant(
        "a transaction whose answer was lost is done again",
        "schedules",
        (
            Edit(
                f"{TRANSACTIONS}:transact",
                "known is not None and (done := known.find(number)) is not None",
                "False",
            ),
        ),
    ),
    Mutant(
        "a transaction does not say that it was done",
        "schedules",
        (
            Edit(
                f"{TRANSACTIONS}:transact",
                "desk.fact(facts.Transacted(client, number, put, dropped), log)",
                "pass",
            ),
        ),
    ),
    Mutant(
        "transactions are not recognised after a restart",
        "schedules",
        (
            Edit(
                "rlog.state:State.apply",
                "each.owner.held = False",
                "each.owner.held = False; self.clients.clear()",
            ),
        ),
    ),
    Mutant(
        "a transaction's claims are tested behind its first fact",
        "schedules",
        (
            Edit(
                f"{TRANSACTIONS}:transact",
                "    for commit in control.commits:\n        _check_commit(desk, peer, commit)\n",
                "",
            ),
            Edit(
                f"{TRANSACTIONS}:_do_commit",
                "    match commit:",
                "    _check_commit(desk, peer, commit)\n    match commit:",
            ),
        ),
    ),
    Mutant(
        "a transaction commits what another holds",
        "schedules",
        (
            Edit(
                f"{DESK}:Desk.held_cursor",
                "grant is None or grant.epoch != cursor.epoch or epoch != cursor.epoch",
                "grant is None or grant.epoch != epoch",
            ),
        ),
    ),
    Mutant(
        "a transaction passes the owner of a log",
        "schedules",
        (
            Edit(
                f"{TRANSACTIONS}:_check_append",
                "epoch or grant is None or grant.epoch != log.owner.epoch",
                "False",
            ),
        ),
    ),
    Mutant(
        "an owner that was taken over is passed in transactions",
        "directed",
        (
            Edit(
                f"{TRANSACTIONS}:_check_append",
                "grant is None or grant.epoch != log.owner.epoch",
                "grant is None",
            ),
        ),
        "test_who_owned_a_log_before_is_refused",
    ),
    Mutant(
        "a transaction's expectations are not tested",
        "schedules",
        (Edit(f"{TRANSACTIONS}:_check_append", "appends.check_end(log, asked.expect)", "pass"),),
    ),
    Mutant(
        "a transaction's expectations are tested before it is recognised",
        "directed",
        (
            Edit(
                f"{TRANSACTIONS}:transact",
                "    if known is not None and",
                "    for each in control.appends:\n"
                "        appends.check_end(desk.log(each.log), each.expect)\n"
                "    if known is not None and",
            ),
        ),
        "test_a_repeated_one_is_recognised_before_anything_else_is_asked_of_it",
    ),
    Mutant(
        "what is too old to be known is done again",
        "directed",
        (Edit("rlog.state:Client.forgot", "len(self.done) >= SENT_MAX", "False"),),
        "test_of_one_that_is_too_old_nobody_says_that_it_was_not_done",
    ),
    Mutant(
        "clients are forgotten by the wall clock",
        "schedules",
        (
            Edit(
                f"{TRANSACTIONS}:transact",
                "client, desk.now)",
                "client, desk.now_ns / 1e9)",
            ),
        ),
    ),
    Mutant(
        "a transaction of many logs is larger than what was promised",
        "directed",
        (
            Edit(
                f"{DESK}:Desk.takes",
                "protocol.transact_bytes(waiting.control) - bodies_bytes",
                "0",
            ),
        ),
        "test_its_size_is_promised_with_all_that_it_adds_to_the_frame",
    ),
    Mutant(
        "an owner comes back to a name that another has opened",
        "directed",
        (
            Edit(
                "rlog.decisions.producers:open_producer",
                "_check_not_reopened(log, entry, control)",
                "pass",
            ),
        ),
        "test_an_owner_whose_name_was_opened_by_another_cannot_come_back_to_it",
    ),
    Mutant(
        "a transaction appends once more with what is committed already",
        "directed",
        (Edit(f"{TRANSACTIONS}:transact", "control.commits if checked else ()", "()"),),
        "test_with_appends_a_record_that_is_committed_already_is_refused_and_nothing_is_appended",
    ),
    Mutant(
        "how a cursor stands is told before a transaction of its holder that waits",
        "directed",
        (
            Edit(
                f"{CONSUMERS}:get_cursor",
                "behind_own(desk, waiting, (log.id, control.consumer))",
                "False",
            ),
        ),
        "test_of_a_cursor_nothing_is_told_before_what_its_holder_has_waiting_is_decided",
    ),
    Mutant(
        "behind others one waits for longer than was said",
        "directed",
        (Edit("rlog.decisions.trims:behind_others", "_waited(desk, waiting)", "False"),),
        "test_it_waits_for_the_space_of_all_its_logs_together_no_longer_than_for_one",
    ),
    Mutant(
        "what was compacted takes more of a transaction's frame than was promised",
        "directed",
        (Edit(f"{MEMBERS}:commit_single", "(flat, None), SINGLE_ABSENT_MAX)", "(flat, None))"),),
        "test_what_was_compacted_is_passed_by_shared_commits_within_what_is_promised",
    ),
    Mutant(
        "a single commit puts down what else is in hand",
        "directed",
        (
            Edit(
                "rlog.state:_settle_shared", "if not any(b <= o < e for b, e in ranges)", "if False"
            ),
        ),
        "test_a_shared_commit_puts_down_its_record_and_no_other",
    ),
    # --- retention ----------------------------------------------------------------------------
    Mutant(
        "what is old is compacted into one file with what is young",
        "directed",
        (Edit("rlog.compaction:_of_an_age", "age is None", "True"),),
        "test_what_is_old_goes_in_time_though_it_was_compacted_together_with_what_is_young",
    ),
    Mutant(
        "compaction makes files larger than retention lets them be",
        "directed",
        (Edit("rlog.compaction:due", "log.roll_bytes", "log.options.file_roll_size"),),
        "test_of_a_compacted_log_that_is_full_goes_a_quarter_at_a_time",
    ),
    Mutant(
        "what a member was sent is compacted away before it is settled",
        "directed",
        (Edit("rlog.decisions.compaction:in_use", "cursor.committed, group.head):", "0, 0):"),),
        "test_what_a_member_was_sent_is_not_compacted_before_it_is_settled",
    ),
    Mutant(
        "readers are told of a trim before it is durable",
        "directed",
        (
            Edit(
                "rlog.decisions.trims:cut",
                "desk.effects.append(lambda: books.begin_at(log.id, first))",
                "books.begin_at(log.id, first)",
            ),
        ),
        "test_nobody_is_told_of_a_trim_before_it_is_durable",
    ),
    Mutant(
        "a bound that is lowered holds from the next frame on",
        "directed",
        (Edit("rlog.decisions.watch:Watch.follow", "self.room.pop(log.id, None)", "pass"),),
        "test_a_bound_that_is_lowered_holds_for_what_is_appended_in_the_same_frame",
    ),
    Mutant(
        "a clock that has jumped is believed",
        "directed",
        (Edit("rlog.retention:doubt_of", "abs(jump_ns) > JUMP_NS", "False"),),
        "test_ten_years_forward_or_back_remove_nothing",
    ),
    Mutant(
        "after a restart the clock is believed as it is found",
        "directed",
        (Edit("rlog.broker:Broker.open", "not boot or boot != state.boot", "True"),),
        "test_ten_years_forward_or_back_remove_nothing",
    ),
    Mutant(
        "what was appended under a wrong clock is as old as that said",
        "directed",
        (
            Edit(
                "rlog.state:State._date",
                "segment.time_max_ns = log.time_max_ns = log.begun_ns = time_ns",
                "pass",
            ),
        ),
        "test_what_was_appended_while_the_clock_was_ten_years_behind_is_not_old_when_it_is_right",
    ),
    Mutant(
        "a clock that is ahead makes young records old enough to go",
        "directed",
        (Edit("rlog.retention:_old_enough", "if doubt is not None:", "if False:"),),
        "test_a_clock_that_is_ahead_makes_no_young_record_old_enough_to_go",
    ),
    Mutant(
        "an append overtakes those that wait for space",
        "directed",
        (
            Edit(
                "rlog.decisions.trims:behind_others",
                "log.id not in desk.books.watch.blocked",
                "True",
            ),
        ),
        "test_whoever_came_later_does_not_overtake",
    ),
    Mutant(
        "rather than block an append what is young is removed",
        "directed",
        (Edit("rlog.retention:_old_enough", "left_ns > 0", "False"),),
        "test_by_time_they_are_released_to_the_moment_and_in_their_order",
    ),
    Mutant(
        "a trim by hand passes a parked record",
        "directed",
        (
            Edit(
                "rlog.decisions.trims:trim_log",
                "if plan.uncopied and not blocked:",
                "plan = plan._replace(first=log.trim_to(before))\n    if False:",
            ),
        ),
        "test_a_parked_record_outlives_the_trim_of_its_place",
    ),
    Mutant(
        "a record that is parked again loses its copy",
        "directed",
        (
            Edit(
                "rlog.state:_put_aside",
                'before.copy if before is not None else b""',
                'b""',
            ),
        ),
        "test_a_parked_record_outlives_the_trim_of_its_place",
    ),
    Mutant(
        "what waits for space outlives its connection",
        "directed",
        (
            Edit(
                "rlog.decisions.trims:behind_others",
                "waiting.since is not None and waiting.peer.closed",
                "False",
            ),
        ),
        "test_with_its_connection_what_waits_is_gone",
    ),
    # --- shared consumers ---------------------------------------------------------------------
    Mutant(
        "a key is free when its settlement is decided",
        "sharing",
        (
            Edit(
                f"{MEMBERS}:_settled",
                "_then(desk, key, lambda group: group.settled(offsets))",
                "group.settled(offsets)",
            ),
        ),
    ),
    Mutant(
        "a record of a member that vanished is given while that is not durable",
        "sharing",
        (
            Edit(
                f"{MEMBERS}:vanish",
                "_then(desk, key, lambda group: group.gone(control.epoch))",
                "desk.books.groups[key].gone(control.epoch)",
            ),
        ),
    ),
    Mutant(
        "records are given from a place that is not durable yet",
        "directed",
        (Edit(f"{MEMBERS}:end_all", "group.move()", "pass"),),
        "test_nothing_is_given_from_where_the_cursor_stands_before_that_is_durable",
    ),
    Mutant(
        "records are settled by one who has them not",
        "sharing",
        (Edit(f"{MEMBERS}:_checked", "not group.has(mate, begin, end)", "False"),),
    ),
    Mutant(
        "records are begun by one who has them not",
        "sharing",
        (
            Edit(
                f"{MEMBERS}:_checked",
                "offset not in mate.hands or holds(finished, offset)",
                "False",
            ),
        ),
    ),
    Mutant(
        "what is retried is in hand until that is durable",
        "directed",
        (Edit(f"{MEMBERS}:_retry", "group.put_down(mate, [(offset, offset + 1)])", "pass"),),
        "test_a_record_that_is_retried_and_committed_in_one_frame_is_retried_only",
    ),
    Mutant(
        "what is given back is given back when the frame is durable",
        "directed",
        (
            Edit(
                f"{MEMBERS}:commit_records",
                "group.give_back(mate, set(control.back).difference(control.begun))",
                "_then(desk, key, lambda group: group.give_back(mate, control.back))",
            ),
        ),
        "test_what_was_given_back_and_is_given_again_in_the_meantime_is_kept",
    ),
    Mutant(
        "ranges that touch stay two",
        "sharing",
        (Edit("rlog.shared:add", "bisect_right(ranges, end)", "bisect_left(ranges, end)"),),
    ),
    Mutant(
        "a vanish with one record in hand fails nothing",
        "sharing",
        (
            Edit(
                "rlog.state:Cursor.lost_member",
                "begun if len(begun) == 1 else []",
                "[]",
            ),
        ),
    ),
    Mutant(
        "a vanish with several records in hand fails each",
        "sharing",
        (
            Edit(
                "rlog.state:Cursor.lost_member",
                "begun if len(begun) == 1 else []",
                "begun",
            ),
        ),
    ),
    Mutant(
        "who vanishes is blamed for what another has settled",
        "directed",
        (Edit("rlog.state:Cursor.lost_member", "if not self._is_done(o)", ""),),
        "test_who_vanishes_is_not_blamed_for_what_another_has_settled_since_a_start",
    ),
    Mutant(
        "suspects are delivered beside others",
        "sharing",
        (Edit(f"{DISPATCH}.assign", "if offset in alone:", "if False:"),),
    ),
    Mutant(
        "one that has a suspect in hand is given more",
        "model",
        (Edit(f"{DISPATCH}.assign", "(mate.hands and self._is_alone(mate))", "False"),),
    ),
    Mutant(
        "in_hand is believed of a record that another has",
        "sharing",
        (
            Edit(
                f"{DISPATCH}.back",
                "epoch not in self._awaited or not self._restore(offset, end)",
                "self.cursor.is_settled(offset)",
            ),
        ),
    ),
    Mutant(
        "the epoch of a member is used again",
        "sharing",
        (
            Edit(
                f"{MEMBERS}:join",
                "cursor.epoch + 1 if cursor is not None else 1",
                "1 + max(shared.members if shared is not None else (), default=0)",
            ),
        ),
    ),
    Mutant(
        "the delay of a shared consumer's record is forgotten at a restart",
        "directed",
        (
            Edit(
                f"{DESK}:Books.begin_life",
                "cursor.shared.members, until, dues",
                "cursor.shared.members, until, {}",
            ),
        ),
        "test_a_delay_is_waited_out_after_a_restart_and_somebody_is_woken_for_it",
    ),
    Mutant(
        "nobody is woken for a delay",
        "model",
        (Edit(f"{DISPATCH}._delay", "self._set_alarm(due)", "pass"),),
    ),
    Mutant(
        "keys of what is in hand since before a start are not looked up",
        "model",
        (Edit(f"{DISPATCH}._restore", "insort(self._unsure, offset)", "pass"),),
    ),
    Mutant(
        "a record waits behind a key that is free",
        "model",
        (Edit(f"{DISPATCH}._release", "self._offer(following)", "pass"),),
    ),
    Mutant(
        "what a member dropped while it was away is nobody's",
        "model",
        (Edit(f"{DISPATCH}.back", "self._come_again(list(before.hands))", "pass"),),
    ),
    Mutant(
        "a paused consumer is given all there is",
        "model",
        (Edit(f"{DISPATCH}.assign", "count = 1 - len(self._holder)", "pass"),),
    ),
    Mutant(
        "what a member lost while it was away is counted when it vanishes",
        "directed",
        (Edit(f"{MEMBERS}:_come_back", "begun != member.begun", "False"),),
        "test_what_a_member_lost_while_it_was_away_is_not_counted_when_it_vanishes",
    ),
)
