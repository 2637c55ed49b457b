/*
 * Dispatch: events in, turns, and outcomes.
 *
 * Guarantees that an event is offered to every lane that wants it, that lanes take turns, so that a long queue never starves a short one, that no lane sends more than its
 * max_in_flight, and that an outcome leaves a trace in the ledger before its item is forgotten.
 *
 * It must never wait, never touch a table, and never send: the worker's loop does those with what this room says.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "miscadmin.h"
#include "storage/procsignal.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "dispatch.h"
#include "routing.h"
#include "status.h"

#define STREAK_NOTED_AFTER (INT64CONST(60) * USECS_PER_SEC)	/* a streak of failures that has lasted so long is written down */
#define STREAK_GRACE USECS_PER_HOUR /* one that was read back must go on for as long before it counts */
#define MISHAPS_AT_MOST 3		/* errors of ours that an event is forgiven, counting the last one … */
#define MISHAP_MS 1000			/* … and how long it rests after one */
#define DISABLE_ATTEMPTS 10		/* failures in a row that disable_after asks for, beside the time */

static OutboxDatabase *database;
static dlist_head to_fetch = DLIST_STATIC_INIT(to_fetch);
static int	total_in_flight = 0;

void
outbox_dispatch_init(OutboxDatabase *of)
{
	database = of;
	outbox_lane_init(of);
}

/* ---- configuration ---- */

/* Another endpoint, or somebody who says that it is well again: what is known of its failures is of no use any more. */
static void
revise_breaker(OutboxLane *lane, const OutboxSubscription *before, const OutboxSubscription *now)
{
	if (now->pull)
		return;
	if (before->pull || strcmp(before->endpoint.url, now->endpoint.url) != 0 ||
		(now->active && before->state_since != now->state_since))
	{
		lane->breaker = (OutboxBreaker) {0};
		lane->answers = false;
		lane->streak = (OutboxStreak) {0};
		if (lane->streak_noted)
			outbox_ledger_failing(now->id, 0);
		lane->streak_noted = false;
	}
	else if (before->breaker.probe != now->breaker.probe || before->breaker.max != now->breaker.max)
		outbox_breaker_retime(&lane->breaker, &now->breaker, GetCurrentTimestamp());
	outbox_status_breaker(database, lane);
}

/* A lane that is new to this worker: the breaker begins closed, and the time before the worker started is not held against the endpoint alone. */
static void
begin_breaker(OutboxLane *lane)
{
	const OutboxSubscription *subscription = lane->subscription;
	int64		grace = Min(STREAK_GRACE, subscription->disable_after / 10);

	lane->streak_noted = subscription->failing_since != 0;
	if (lane->streak_noted)
		lane->streak.since = Max(subscription->failing_since, GetCurrentTimestamp() - subscription->disable_after + grace);
	outbox_status_breaker(database, lane);
}

static void
reconfigure(OutboxLane *lane, OutboxSubscription *subscription)
{
	bool		unorder = lane->subscription->ordered && !subscription->ordered;

	revise_breaker(lane, lane->subscription, subscription);
	outbox_subscription_unpin(lane->subscription);
	lane->subscription = outbox_subscription_pin(subscription);
	outbox_lane_delist(lane);	/* its turn may be another one, or come at another time */
	outbox_turns_join(lane);
	if (!outbox_ledger_disabling(subscription->id))
		lane->disabled = false;
	if (unorder)
		outbox_lane_unorder(lane);
	outbox_batch_forget(lane);
	if (outbox_lane_may_send(lane))
		outbox_lane_enlist(lane);
	else
		outbox_lane_shed(lane);
}

void
outbox_dispatch_configure(List *subscriptions, List **added)
{
	ListCell   *cell;

	foreach(cell, outbox_lane_all())
		((OutboxLane *) lfirst(cell))->present = false;
	foreach(cell, subscriptions)
	{
		OutboxSubscription *subscription = lfirst(cell);
		OutboxLane *lane = outbox_lane_find(subscription->id);

		if (lane != NULL)
			reconfigure(lane, subscription);
		else
		{
			lane = outbox_lane_create(subscription);
			begin_breaker(lane);
			*added = lappend(*added, lane);
		}
		lane->present = true;
		outbox_subscription_unpin(subscription);
	}
	foreach(cell, outbox_lane_all())
	{
		OutboxLane *lane = lfirst(cell);

		if (!lane->present)
			outbox_lane_drop(lane);
	}
	outbox_routing_index(outbox_lane_all());
}

/* ---- exceptions read back ---- */

/* An operator changed this one: redriven events that were held or forgotten come back to life. */
static void
revive(OutboxItem *item, const OutboxException *exception)
{
	item->seen = true;
	item->withdrawn = false;
	outbox_item_set_replayed(item, exception->replay);
	if (item->state != OUTBOX_ITEM_IN_FLIGHT)
		item->first_at = exception->first_at;	/* resume() takes the time of a pause out of it */
	if (!item->dead || exception->status == OUTBOX_ROW_DEAD)
		return;
	item->dead = false;
	item->attempts = exception->attempts;
	item->first_at = exception->first_at;
	item->next_at = exception->next_at;
	if (item->state == OUTBOX_ITEM_HELD)
		outbox_item_retry(item);
}

static void
forget_seen(OutboxItem *item)
{
	item->seen = false;
}

/* A row that an operator took away. */
static void
drop_unseen(OutboxItem *item)
{
	OutboxLane *lane = item->lane;

	if (item->seen)
		return;
	if (item->state == OUTBOX_ITEM_IN_FLIGHT)
		item->withdrawn = true;
	else
	{
		outbox_item_finish(item);
		outbox_lane_enlist(lane);
	}
}

void
outbox_dispatch_exceptions(const OutboxException *exceptions, int n)
{
	outbox_item_each_exception(forget_seen);
	for (int i = 0; i < n; i++)
	{
		const OutboxException *exception = &exceptions[i];
		OutboxLane *lane = outbox_lane_find(exception->subscription);
		OutboxItem *item;

		if (lane == NULL)
			continue;
		item = outbox_item_exception(exception->subscription, &exception->event_id);
		if (outbox_ledger_noted(exception->subscription, &exception->event_id))
		{
			/* the row is older than what is noted about it */
			if (item != NULL)
				item->seen = true;
		}
		else if (item != NULL)
			revive(item, exception);
		else
			outbox_item_take_over(lane, exception, true);
	}
	outbox_item_each_exception(drop_unseen);
}

void
outbox_dispatch_replayed(const OutboxException *exceptions, int n)
{
	for (int i = 0; i < n; i++)
	{
		const OutboxException *exception = &exceptions[i];
		OutboxLane *lane = outbox_lane_find(exception->subscription);
		OutboxItem *item = outbox_item_exception(exception->subscription, &exception->event_id);

		if (item != NULL)
			revive(item, exception);
		else if (lane != NULL)
			outbox_item_take_over(lane, exception, false);	/* the cursor is past what is replayed */
	}
}

/* ---- in ---- */

/* Offers one event to a lane at the head. */
static void
offer(OutboxLane *lane, OutboxChunk *chunk, int index)
{
	OutboxPosition before;

	if (!lane->at_head || !outbox_subscription_wants(lane->subscription, chunk, index))
		return;
	if (outbox_lane_is_settled(lane, chunk, index))
		return;
	if (outbox_lane_has_room(lane))
	{
		outbox_lane_enter(lane, chunk, index);
		return;
	}
	before = outbox_chunk_before(chunk, index);
	outbox_lane_fall_off(lane, &before);
}

void
outbox_dispatch_route(OutboxChunk *chunk, uint64 offset)
{
	for (int i = 0; i < chunk->n; i++)
	{
		/* many subscriptions take long; another database's DROP DATABASE must not wait for that */
		if (ProcSignalBarrierPending)
			ProcessProcSignalBarrier();
		outbox_lane_head_at(offset + i);
		outbox_routing_visit(chunk, i, offer);
	}
	outbox_lane_head_at(offset + chunk->n);
}

bool
outbox_dispatch_fetching(void)
{
	return !dlist_is_empty(&to_fetch);
}

/* Is this event for a lane that reads for itself, and not in it already? */
static bool
is_for(OutboxLane *lane, OutboxChunk *chunk, int index)
{
	return !outbox_lane_is_before_start(lane, chunk->events[index].event.xid) &&
		outbox_subscription_wants(lane->subscription, chunk, index) &&
		!outbox_lane_is_settled(lane, chunk, index);
}

void
outbox_dispatch_fill(OutboxLane *lane, OutboxChunk *chunk)
{
	int			i = outbox_chunk_index(chunk, &lane->position);

	if (i == chunk->n && outbox_chunk_ends_before(chunk, &lane->position))
	{
		/* it was read again, and has become shorter: what follows is read from here */
		lane->position.inside = false;
		return;
	}
	if (!outbox_subscription_may_want(lane->subscription, chunk))
	{
		lane->offset += chunk->n - i;
		i = chunk->n;
	}
	for (; i < chunk->n; i++)
	{
		if (is_for(lane, chunk, i))
		{
			if (!outbox_lane_has_room(lane))
			{
				OutboxPosition before = outbox_chunk_before(chunk, i);

				outbox_position_set(&lane->position, &before);
				return;
			}
			outbox_lane_enter(lane, chunk, i);
		}
		lane->offset++;
	}
	outbox_position_set(&lane->position, &chunk->to);
}

/* With an item come those that would leave with it in a batch, if they were in memory: with few keys there is nothing else to fill one with. */
int
outbox_dispatch_to_fetch(OutboxItem **items, int max)
{
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &to_fetch)
	{
		OutboxItem *item = dlist_container(OutboxItem, queue, iter.cur);
		int			most = item->lane->subscription->format == OUTBOX_FORMAT_BATCH ? outbox_batch_most(item) : 1;

		for (int i = 0; n < max && item != NULL && i < most; i++)
		{
			most = Min(most, outbox_batch_most(item));
			if (item->logged == NULL)
				items[n++] = item;
			item = outbox_item_follower(item);
		}
	}
	return n;
}

/* An exception whose event no longer exists cannot be sent; it must not vanish either. */
static void
bury(OutboxItem *item)
{
	OutboxLane *lane = item->lane;
	OutboxExchange lost = {.outcome = OUTBOX_INTERNAL, .error = "the event no longer exists"};

	outbox_item_note(item, OUTBOX_ROW_DEAD, &lost, "internal", true);
	outbox_item_finish(item);
	outbox_lane_enlist(lane);	/* another one may be what its breaker is probed with */
}

void
outbox_dispatch_fetched(OutboxItem **items, int n, OutboxChunk *chunk)
{
	int			found = 0;

	for (int i = 0; i < n; i++)
	{
		OutboxItem *item = items[i];

		if (found == chunk->n || memcmp(&chunk->events[found].event.log_id, &item->log_id, sizeof(pg_uuid_t)) != 0)
		{
			if (item->state == OUTBOX_ITEM_FETCHING)
				bury(item);		/* a follower when it is its turn */
			continue;
		}
		item->chunk = outbox_chunk_pin(chunk);
		item->logged = &chunk->events[found++];
		if (item->state == OUTBOX_ITEM_FETCHING)
		{
			dlist_delete(&item->queue);
			item->lane->fetching--;
			outbox_item_ready(item, true);
		}
	}
}

/* ---- out ---- */

static void
begin_request(OutboxItem *item, const OutboxGrant *grant, TimestampTz now)
{
	OutboxLane *lane = item->lane;

	if (lane->requests == 0)
		lane->heard_at = now;
	item->grant = *grant;
	outbox_turns_begin(lane, grant);
	if (lane->subscription->rate_limit > 0)
		outbox_bucket_take(&lane->bucket, lane->subscription->rate_limit, now);
	item->probe = lane->breaker.state == OUTBOX_BREAKER_OPEN;
	if (item->probe)
		outbox_breaker_probe(&lane->breaker);
}

OutboxItem *
outbox_dispatch_next(int max_in_flight, TimestampTz now)
{
	OutboxLane *lane;
	OutboxGrant grant;

	while ((lane = outbox_turns_next(max_in_flight, now, &grant)) != NULL)
	{
		OutboxItem *item;

		if (dlist_is_empty(&lane->ready) || !outbox_lane_may_send(lane))
		{
			outbox_lane_enlist(lane);
			continue;
		}
		item = dlist_head_element(OutboxItem, queue, &lane->ready);
		if (item->logged == NULL)
		{
			dlist_delete(&item->queue);
			item->state = OUTBOX_ITEM_FETCHING;
			lane->fetching++;
			dlist_push_tail(&to_fetch, &item->queue);
			outbox_lane_enlist(lane);
			continue;
		}
		if (lane->subscription->rate_limit > 0)
			now = GetCurrentTimestamp();	/* not earlier than the moment at which it had a token */
		outbox_item_fly(item, now);
		total_in_flight++;
		begin_request(item, &grant, now);
		return item;
	}
	return NULL;
}

int
outbox_dispatch_in_flight(void)
{
	return total_in_flight;
}

static void
retry(OutboxItem *item, const OutboxExchange *exchange, TimestampTz at)
{
	OutboxLane *lane = item->lane;

	item->next_at = at;
	outbox_item_land(item);
	if (item->row)
	{
		outbox_item_note(item, OUTBOX_ROW_RETRYING, exchange, NULL, true);
		outbox_item_release(item);
	}
	else if (lane->n_rows < lane->subscription->max_blocked)
		outbox_item_make_row(item, OUTBOX_ROW_RETRYING, exchange, NULL);
}

static void
die_letter(OutboxItem *item, const OutboxExchange *exchange, const char *reason)
{
	OutboxLane *lane = item->lane;

	if (!lane->subscription->block_on_dead || !item->keyed)
	{
		outbox_item_note(item, OUTBOX_ROW_DEAD, exchange, reason, item->row);
		outbox_item_finish(item);
		return;
	}
	item->dead = true;
	outbox_item_land(item);
	if (item->row)
	{
		outbox_item_note(item, OUTBOX_ROW_DEAD, exchange, reason, true);
		outbox_item_release(item);
	}
	else
		outbox_item_make_row(item, OUTBOX_ROW_DEAD, exchange, reason);
}

/* Behind another item of its key, which was in the same batch: whatever its outcome would mean, it has to wait. */
static void
wait_again(OutboxItem *item, const OutboxExchange *exchange)
{
	item->next_at = 0;
	outbox_item_land(item);
	if (!item->row)
		return;
	outbox_item_note(item, OUTBOX_ROW_BLOCKED, exchange, NULL, true);
	outbox_item_release(item);
}

/* Items that were in flight and have lost no attempt are the next ones again, in their order.  exchange: what their rows should tell; NULL: nothing new. */
static void
put_back(OutboxItem *const *items, int n, const OutboxExchange *exchange)
{
	for (int i = n - 1; i >= 0; i--)
	{
		OutboxItem *item = items[i];
		bool		first = outbox_item_is_first(item);

		if (item->withdrawn)
		{
			outbox_item_finish(item);
			continue;
		}
		item->next_at = 0;
		outbox_item_land(item);
		if (item->row && exchange != NULL)
			outbox_item_note(item, first ? OUTBOX_ROW_RETRYING : OUTBOX_ROW_BLOCKED, exchange, NULL, true);
	}
}

/* 410: nothing more goes there until an operator says so. */
static void
disable(OutboxLane *lane)
{
	lane->disabled = true;
	outbox_lane_delist(lane);
	outbox_ledger_disable(lane->subscription->id, "410 Gone: the endpoint says that it is gone for good");
}

static void
carry_out(OutboxItem *item, const OutboxExchange *exchange, const OutboxVerdict *verdict)
{
	OutboxLane *lane = item->lane;

	if (verdict->decision == OUTBOX_RETRY)
		retry(item, exchange, verdict->at);
	else if (verdict->decision == OUTBOX_DEAD)
		die_letter(item, exchange, verdict->reason);
	else
	{
		if (item->row)
			outbox_ledger_remove(lane->subscription->id, &item->id);
		outbox_item_finish(item);
	}
}

/* What the outcome of its request means for one item; its attempt is counted. */
static void
conclude(OutboxItem *item, const OutboxExchange *exchange, const OutboxVerdict *verdict)
{
	if (item->withdrawn)
		outbox_item_finish(item);
	else if (verdict->decision != OUTBOX_DONE && !outbox_item_is_first(item))
		wait_again(item, exchange);
	else
		carry_out(item, exchange, verdict);
}

/* Each item of the request has its attempt in the log; of a split, all exchanges have the number of the attempt that goes on. */
static void
log_attempts(OutboxItem *const *items, int n, const OutboxExchange *exchange)
{
	for (int i = 0; i < n; i++)
		outbox_ledger_attempt(items[i]->lane->subscription->id, &items[i]->id, items[i]->attempts + 1, items[i]->started_at, exchange,
							  items[i]->replayed, i > 0);
}

static bool
any_is_wanted(OutboxItem *const *items, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (!items[i]->withdrawn)
			return true;
	}
	return false;
}

static void
let_go(OutboxItem *item)
{
	OutboxLane *lane = item->lane;

	lane->in_flight--;
	lane->flying_bytes -= item->size;
	outbox_subscription_unpin(item->subscription);
	item->subscription = NULL;
	item->probe = false;
}

/* The request is over: they are no longer part of one. */
static void
end_request(OutboxItem *const *items, int n, TimestampTz now)
{
	total_in_flight--;
	outbox_turns_end(items[0]->lane, &items[0]->grant);
	items[0]->lane->heard_at = now;
	for (int i = 0; i < n; i++)
		let_go(items[i]);
}

static void
free_dropped(OutboxLane *lane, OutboxItem *const *items, int n)
{
	for (int i = 0; i < n; i++)
		outbox_item_free(items[i]);
	if (lane->in_flight == 0)
		outbox_lane_free(lane);
}

/* Nothing but failures, for long enough: nothing more goes there until an operator says so. */
static void
give_up_endpoint(OutboxLane *lane, TimestampTz now)
{
	char	   *reason = psprintf("nothing but failures since %s, %d of them in a row", timestamptz_to_str(lane->streak.since),
								  lane->streak.attempts);

	lane->disabled = true;
	outbox_lane_delist(lane);
	outbox_ledger_disable(lane->subscription->id, reason);
	pfree(reason);
}

/*
 * How long it has been failing outlives the worker: it is written down once it has lasted for a while, and once more when it is over, so that it costs no write
 * for an event, and none for an endpoint that just stumbles.
 */
static void
watch_streak(OutboxLane *lane, OutboxOutcome outcome, TimestampTz started_at, TimestampTz now)
{
	const OutboxSubscription *subscription = lane->subscription;

	outbox_streak_add(&lane->streak, outcome, started_at);
	if (lane->streak.since == 0 && lane->streak_noted)
	{
		outbox_ledger_failing(subscription->id, 0);
		lane->streak_noted = false;
	}
	else if (!lane->streak_noted &&
			 outbox_streak_lasts(&lane->streak, Min(STREAK_NOTED_AFTER, subscription->disable_after / 10), 1, now))
	{
		outbox_ledger_failing(subscription->id, lane->streak.since);
		lane->streak_noted = true;
	}
	if (!lane->disabled &&
		outbox_streak_lasts(&lane->streak, subscription->disable_after, DISABLE_ATTEMPTS, now))
		give_up_endpoint(lane, now);
}

/* What the end of a request says about the endpoint. */
static void
judge_endpoint(OutboxLane *lane, const OutboxExchange *exchange, bool splits, bool probe, TimestampTz started_at, TimestampTz now)
{
	const OutboxSubscription *subscription = lane->subscription;
	OutboxEvidence evidence = outbox_evidence(exchange->outcome, exchange->status);
	int64		asked = Min(exchange->retry_after, subscription->retry.max);

	lane->answers |= evidence == OUTBOX_ALIVE;
	watch_streak(lane, exchange->outcome, started_at, now);
	if (splits && exchange->status != 0)
		evidence = OUTBOX_NO_EVIDENCE;	/* it may be one member's fault; the parts will tell */
	if (!outbox_breaker_judge(&lane->breaker, &subscription->breaker, evidence, probe, now, asked,
							  pg_prng_double(&pg_global_prng_state), subscription->max_in_flight))
		return;
	outbox_status_breaker(database, lane);
	outbox_lane_delist(lane);
	if (lane->breaker.state != OUTBOX_BREAKER_CLOSED)
		outbox_lane_shed(lane);	/* its events wait in the log */
}

void
outbox_dispatch_finished(OutboxItem *const *items, int n, const OutboxExchange *exchange, TimestampTz now)
{
	OutboxLane *lane = items[0]->lane;
	OutboxSubscription *subscription = outbox_subscription_pin(items[0]->subscription);
	double		dice = pg_prng_double(&pg_global_prng_state);
	TimestampTz started_at = items[0]->started_at;
	bool		probe = items[0]->probe;
	bool		splits;

	if (exchange->outcome == OUTBOX_DELIVERED)
		lane->failures = 0;
	else if (n > 1 || items[0]->attempts == 0)
		lane->failures++;		/* one that fails again and again says nothing about the others */
	splits = outbox_batch_splits(items, n, exchange, now, dice);
	end_request(items, n, now);
	if (lane->dropped)
	{
		free_dropped(lane, items, n);
		outbox_subscription_unpin(subscription);
		return;
	}

	log_attempts(items, n, exchange);
	outbox_status_exchange(database, lane, exchange, now);
	if (exchange->outcome == OUTBOX_GONE)
	{
		if (any_is_wanted(items, n))
			disable(lane);
		put_back(items, n, exchange);
	}
	else if (splits)
	{
		for (int i = 0; i < n; i++)
			items[i]->together = (n + 1) / 2;
		put_back(items, n, NULL);
	}
	else
	{
		for (int i = 0; i < n; i++)
		{
			OutboxItem *item = items[i];
			OutboxVerdict verdict = outbox_verdict(exchange->outcome, exchange->status, ++item->attempts, item->first_at, now,
												   exchange->retry_after, dice, &subscription->retry);

			conclude(item, exchange, &verdict);
		}
	}
	judge_endpoint(lane, exchange, splits, probe, started_at, now);
	outbox_subscription_unpin(subscription);
	outbox_lane_enlist(lane);
}

void
outbox_dispatch_mishap(OutboxItem *const *items, int n, OutboxExchange *exchange, bool blameless, TimestampTz now)
{
	OutboxItem *item = items[0];
	OutboxLane *lane = item->lane;
	bool		probe = item->probe;
	bool		alone = item->together == 1 || item->subscription->format != OUTBOX_FORMAT_BATCH;

	if (alone && !blameless && ++item->mishaps >= MISHAPS_AT_MOST)
	{
		outbox_dispatch_finished(items, n, exchange, now);
		return;
	}
	end_request(items, n, now);
	if (lane->dropped)
	{
		free_dropped(lane, items, n);
		return;
	}
	for (int i = 0; i < n; i++)
		items[i]->together = 1;
	if (n > 1)
	{
		put_back(items, n, NULL);
	}
	else if (item->withdrawn)
		outbox_item_finish(item);
	else if (outbox_item_is_first(item))
		retry(item, exchange, TimestampTzPlusMilliseconds(now, MISHAP_MS));
	else
		wait_again(item, exchange);
	judge_endpoint(lane, exchange, false, probe, now, now);
	outbox_lane_enlist(lane);
}

void
outbox_dispatch_returned(OutboxItem *item, const OutboxExchange *exchange, int64 retry_in, TimestampTz now)
{
	OutboxLane *lane = item->lane;
	OutboxVerdict verdict = outbox_verdict(exchange->outcome, 0, ++item->attempts, item->first_at, now, -1,
										   pg_prng_double(&pg_global_prng_state), &item->subscription->retry);

	if (verdict.decision == OUTBOX_RETRY && retry_in >= 0)
		verdict.at = now + retry_in;
	let_go(item);
	if (lane->dropped)
	{
		free_dropped(lane, &item, 1);
		return;
	}
	outbox_ledger_attempt(lane->subscription->id, &item->id, item->attempts, item->started_at, exchange, item->replayed, false);
	outbox_status_exchange(database, lane, exchange, now);
	if (item->withdrawn)
		outbox_item_finish(item);
	else
		carry_out(item, exchange, &verdict);
}

/* ---- cursors ---- */

bool
outbox_dispatch_pass_overtaken(void)
{
	bool		young = false;
	ListCell   *cell;

	foreach(cell, outbox_lane_all())
	{
		OutboxLane *lane = lfirst(cell);

		if (lane->n_outstanding > 0)
			young |= outbox_lane_pass_overtaken(lane, false);
	}
	return young;
}

void
outbox_dispatch_mark(uint64 items)
{
	ListCell   *cell;

	foreach(cell, outbox_lane_all())
	{
		OutboxLane *lane = lfirst(cell);

		if (lane->max_done_seq - lane->marked_done_seq >= items)
			lane->marked_done_seq = lane->max_done_seq;
	}
}
