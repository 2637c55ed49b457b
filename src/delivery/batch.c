/*
 * Batches.
 *
 * Guarantees that a batch that is full goes at once and one that is not waits no longer than batch_linger; that the items of a key that are in one batch are consecutive and in
 * their order; and that one event that its receiver cannot digest does not take its neighbours with it:
 *
 *  - A batch that was refused for what may be in it (most of 4xx and 5xx) is sent again at once, in halves, down to single events.  Those exchanges belong to one attempt: it
 *    counts for an item when the item was alone.
 *  - A failure that says nothing about the members (network, timeout, 429, 503 …) is an attempt of each of them, and they wait as single events would.  But with each
 *    such attempt an item goes into batches of a quarter of the size, so that also the event that crashes its receiver is alone soon.
 *  - A refusal is not taken for a member's fault if the lane has seen nothing but failures for longer than a split takes: then it is the endpoint's.
 *  - No item becomes a dead letter in company (except when the address is refused, which no member can cause).
 *
 * Which items are in a batch has no other meaning: after a failure or a restart they may be grouped differently, under another webhook-id.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "batch.h"

#define SHRINKS_BY 4			/* a batch, with each attempt that a member has behind it */

static pairingheap *lingering;

static int
compare_ripe(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz first = pairingheap_const_container(OutboxLane, linger_node, a)->ripe_at;
	TimestampTz second = pairingheap_const_container(OutboxLane, linger_node, b)->ripe_at;

	return first < second ? 1 : first > second ? -1 : 0;
}

void
outbox_batch_init(MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);

	lingering = pairingheap_allocate(compare_ripe, NULL);
	MemoryContextSwitchTo(old);
}

/* ---- company ---- */

void
outbox_batch_forget(OutboxLane *lane)
{
	if (!lane->lingers)
		return;
	pairingheap_remove(lingering, &lane->linger_node);
	lane->lingers = false;
}

/* An estimate, which costs nothing to keep: it counts those behind a key that is held back, until they are exceptions. */
static bool
is_full(const OutboxLane *lane)
{
	const OutboxSubscription *subscription = lane->subscription;

	return lane->n_outstanding - lane->in_flight >= subscription->batch_size ||
		lane->outstanding_bytes >= lane->flying_bytes + subscription->batch_bytes ||
		!outbox_lane_has_room(lane);
}

bool
outbox_batch_waits(OutboxLane *lane)
{
	const OutboxSubscription *subscription = lane->subscription;
	const OutboxItem *oldest;
	TimestampTz now;

	if (subscription->format != OUTBOX_FORMAT_BATCH || subscription->batch_linger == 0 || is_full(lane))
	{
		outbox_batch_forget(lane);
		return false;
	}
	if (lane->lingers)
		return true;

	/* what comes back from a failure has waited already */
	oldest = dlist_head_element(OutboxItem, queue, &lane->ready);
	now = GetCurrentTimestamp();
	lane->ripe_at = Min(oldest->entered_at, now) + subscription->batch_linger;
	if (lane->ripe_at <= now)
		return false;
	lane->lingers = true;
	pairingheap_add(lingering, &lane->linger_node);
	return true;
}

void
outbox_batch_ripen(TimestampTz now)
{
	while (!pairingheap_is_empty(lingering))
	{
		OutboxLane *lane = pairingheap_container(OutboxLane, linger_node, pairingheap_first(lingering));

		/* a clock that was set back must not make anybody wait longer */
		if (lane->ripe_at > now && lane->ripe_at - now <= lane->subscription->batch_linger)
			return;
		outbox_batch_forget(lane);
		outbox_lane_enlist_ripe(lane);
	}
}

TimestampTz
outbox_batch_next_ripe(void)
{
	if (pairingheap_is_empty(lingering))
		return DT_NOEND;
	return pairingheap_container(OutboxLane, linger_node, pairingheap_first(lingering))->ripe_at;
}

/* ---- who may go together ---- */

int
outbox_batch_most(const OutboxItem *item)
{
	int			most = item->probe ? 1 : item->lane->subscription->batch_size;	/* a probe counts for one event alone */

	for (int i = 0; i < item->attempts && most > 1; i++)
		most = (most + SHRINKS_BY - 1) / SHRINKS_BY;
	return item->together > 0 ? Min(most, item->together) : most;
}

/*
 * First the one that waits behind the last in its key: with few keys there would be nothing else to fill a batch with, and while this one is in flight
 * it could go in no other.  Then the longest ready.  One whose event is not in memory is left for a request of its own, which fetches it.
 */
OutboxItem *
outbox_batch_candidate(OutboxItem *last)
{
	OutboxLane *lane = last->lane;
	OutboxItem *item = outbox_item_follower(last);

	if (item != NULL && item->logged != NULL)
		return item;
	if (dlist_is_empty(&lane->ready))
		return NULL;
	item = dlist_head_element(OutboxItem, queue, &lane->ready);
	return item->logged != NULL ? item : NULL;
}

/* ---- whose fault was it? ---- */

/* Is this the kind of answer that one event among others can cause? */
static bool
may_be_a_member(const OutboxExchange *exchange)
{
	switch (exchange->outcome)
	{
		case OUTBOX_HTTP_4XX:
			return exchange->status != 408 && exchange->status != 425 && exchange->status != 429;
		case OUTBOX_HTTP_5XX:
			return exchange->status < 502 || exchange->status > 504;
		case OUTBOX_BAD_REQUEST:
		case OUTBOX_INTERNAL:
			return true;
		default:
			return false;
	}
}

/* More failures in a row than the way down to a single event has. */
static bool
is_the_endpoint(const OutboxLane *lane)
{
	int			steps = 2;

	for (int size = lane->subscription->batch_size; size > 1; size = (size + 1) / 2)
		steps++;
	return lane->failures > steps;
}

bool
outbox_batch_splits(OutboxItem *const *items, int n, const OutboxExchange *exchange, TimestampTz now, double dice)
{
	const OutboxSubscription *subscription = items[0]->subscription;

	if (n == 1 || exchange->outcome == OUTBOX_DELIVERED || exchange->outcome == OUTBOX_GONE || exchange->outcome == OUTBOX_BLOCKED)
		return false;
	if (exchange->status == 413 || (may_be_a_member(exchange) && !is_the_endpoint(items[0]->lane)))
		return true;

	/* nobody dies in company */
	for (int i = 0; i < n; i++)
	{
		if (outbox_verdict(exchange->outcome, exchange->status, items[i]->attempts + 1, items[i]->first_at, now,
						   exchange->retry_after, dice, &subscription->retry).decision == OUTBOX_DEAD)
			return true;
	}
	return false;
}
