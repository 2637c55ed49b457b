/*
 * Leases.
 *
 * A lease is a set of items of a pull lane, in flight until they are settled or the lease expires: an ack is what a 2xx is to a push subscription, a nack and an expired lease are
 * failed attempts.  Leases are in memory only: after a restart of the worker tokens are stale, and what was leased is delivered again (guarantee 4); what was leased for long has a row and
 * comes back when its lease would have ended.
 *
 * ack() and nack() are settlements: they hold their items until the transaction that made them has ended, even beyond the end of the lease, as a row lock would.
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "call.h"
#include "dispatch.h"
#include "fault.h"
#include "lease.h"
#include "recorder.h"
#include "work.h"

#define PUT_OFF_MS 10			/* calls that wait for something are looked at again */
#define WAIT_FOR_EVENTS_MS 200	/* how long a call waits while the worker reads a backlog */
#define WAIT_FOR_LANE_MS 5000	/* and for a subscription that it has not heard of */

/* Items leased together.  Ends when none is left of them. */
struct OutboxLease
{
	pg_uuid_t	token;
	OutboxLane *lane;
	TimestampTz until;
	bool		expired;		/* nobody can find it any more */
	int			n;				/* items, those in settlements included */
	dlist_head	items;			/* the others */
	pairingheap_node due;
};

/* An ack or nack of a transaction that has not ended. */
typedef struct Settlement
{
	dlist_node	node;
	OutboxTicket ticket;
	int			number;
	OutboxExchange exchange;	/* how it is recorded */
	int64		retry_in;
	dlist_head	items;			/* out of their lease's list */
} Settlement;

typedef struct LeaseEntry
{
	pg_uuid_t	token;
	OutboxLease *lease;
} LeaseEntry;

static OutboxWork *const work = &outbox_work;
static MemoryContext context;
static HTAB *leases;
static pairingheap *expiring;
static dlist_head settlements = DLIST_STATIC_INIT(settlements);
static bool waiting = false;	/* calls were put off */
static bool served = false;		/* calls were answered, in this step */

static int
compare_until(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz first = pairingheap_const_container(OutboxLease, due, a)->until;
	TimestampTz second = pairingheap_const_container(OutboxLease, due, b)->until;

	return first < second ? 1 : first > second ? -1 : 0;
}

void
outbox_lease_init(void)
{
	HASHCTL		control = {.keysize = sizeof(pg_uuid_t), .entrysize = sizeof(LeaseEntry)};
	MemoryContext old;

	context = AllocSetContextCreate(TopMemoryContext, "outbox leases", ALLOCSET_DEFAULT_SIZES);
	control.hcxt = context;
	leases = hash_create("outbox leases", 128, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	old = MemoryContextSwitchTo(context);
	expiring = pairingheap_allocate(compare_until, NULL);
	MemoryContextSwitchTo(old);
}

/* ---- items come back ---- */

/* From now on the token is stale. */
static void
close_lease(OutboxLease *lease)
{
	hash_search(leases, &lease->token, HASH_REMOVE, NULL);
	pairingheap_remove(expiring, &lease->due);
	lease->expired = true;
}

static void
give_back(OutboxItem *item, OutboxExchange *exchange, int64 retry_in, TimestampTz now)
{
	OutboxLease *lease = item->lease;

	item->lease = NULL;
	exchange->duration = now - item->started_at;
	exchange->retry_after = -1;
	outbox_dispatch_returned(item, exchange, retry_in, now);
	work->moved = true;
	if ((work->noted_at == 0 || work->noted_at > now) && outbox_ledger_pending() > 0)
		work->noted_at = now;

	if (lease != NULL && --lease->n == 0)
	{
		if (!lease->expired)
			close_lease(lease);
		pfree(lease);
	}
}

/* Takes the first of a list; the list may end its owner's life with its last item. */
static OutboxItem *
pop_item(dlist_head *items)
{
	return dlist_container(OutboxItem, queue, dlist_pop_head_node(items));
}

static void
give_back_expired(OutboxItem *item, TimestampTz now)
{
	OutboxExchange expired = {.outcome = OUTBOX_LEASE_EXPIRED, .error = "the lease expired"};

	give_back(item, &expired, 0, now);
}

static void
expire(OutboxLease *lease, TimestampTz now)
{
	dlist_head	items = DLIST_STATIC_INIT(items);

	close_lease(lease);
	while (!dlist_is_empty(&lease->items))
		dlist_push_tail(&items, dlist_pop_head_node(&lease->items));
	while (!dlist_is_empty(&items))
		give_back_expired(pop_item(&items), now);
}

/* ---- settlements ---- */

static OutboxLease *
find_lease(const pg_uuid_t *token, int32 subscription)
{
	LeaseEntry *entry = hash_search(leases, token, HASH_FIND, NULL);

	if (entry == NULL || entry->lease->lane->dropped || entry->lease->lane->subscription->id != subscription)
		return NULL;
	return entry->lease;
}

static bool
is_of(const Settlement *settlement, OutboxTicket ticket)
{
	return settlement->ticket.seat == ticket.seat && settlement->ticket.serial == ticket.serial;
}

static void
forget_settlement(Settlement *settlement)
{
	dlist_delete(&settlement->node);
	pfree(settlement);
}

/* It happened. */
static void
carry_out(Settlement *settlement, TimestampTz now)
{
	while (!dlist_is_empty(&settlement->items))
		give_back(pop_item(&settlement->items), &settlement->exchange, settlement->retry_in, now);
	forget_settlement(settlement);
}

/* It did not happen: back into the lease, or, if that has expired meanwhile, where its items would have gone then. */
static void
undo(Settlement *settlement, TimestampTz now)
{
	while (!dlist_is_empty(&settlement->items))
	{
		OutboxItem *item = pop_item(&settlement->items);

		if (item->lease->expired)
			give_back_expired(item, now);
		else
			dlist_push_tail(&item->lease->items, &item->queue);
	}
	forget_settlement(settlement);
}

static bool
end_settlements(TimestampTz now)
{
	bool		any = false;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &settlements)
	{
		Settlement *settlement = dlist_container(Settlement, node, iter.cur);

		switch (outbox_call_ticket_state(settlement->ticket))
		{
			case OUTBOX_TICKET_OPEN:
				continue;
			case OUTBOX_TICKET_COMMITTED:
				OUTBOX_FAULT("settle-before-carrying-out");
				carry_out(settlement, now);
				break;
			case OUTBOX_TICKET_ABORTED:
				undo(settlement, now);
				break;
		}
		any = true;
	}
	return any;
}

/* ---- calls ---- */

static bool
answer(OutboxCall *call, OutboxCallAnswer with)
{
	call->answer = with;
	served = true;
	return true;
}

static bool
asked_within(const OutboxCall *call, int ms)
{
	return !TimestampDifferenceExceeds(call->asked_at, GetCurrentTimestamp(), ms);
}

static void
lease_item(OutboxItem *item, OutboxLease *lease, OutboxCall *call, TimestampTz now)
{
	OutboxCallEvent *event = &call->events[call->n++];

	outbox_item_fly(item, now);
	item->lease = lease;
	lease->n++;
	item->leased_until = lease->until;
	dlist_push_tail(&lease->items, &item->queue);
	event->id = item->log_id;
	event->attempts = item->attempts;
}

/* An event that cannot be read is no use to a consumer. */
static bool
is_unreadable(const OutboxItem *item)
{
	return item->logged != NULL && item->logged->event.unreadable;
}

static void
give_up_unreadable(OutboxItem *item, TimestampTz now)
{
	OutboxExchange unreadable = {.outcome = OUTBOX_INTERNAL, .error = "the event cannot be read"};

	outbox_item_fly(item, now);
	give_back(item, &unreadable, 0, now);
}

static bool
serve_lease(OutboxCall *call, OutboxLane *lane)
{
	TimestampTz now = GetCurrentTimestamp();
	OutboxLease *lease;
	bool		found;

	call->n = 0;
	call->until = now + call->lease;
	if (!outbox_lane_may_send(lane))
		return answer(call, OUTBOX_ANSWER_DONE);
	while (!dlist_is_empty(&lane->ready) && is_unreadable(dlist_head_element(OutboxItem, queue, &lane->ready)))
		give_up_unreadable(dlist_head_element(OutboxItem, queue, &lane->ready), now);
	if (dlist_is_empty(&lane->ready))
		return !lane->at_head && outbox_lane_has_room(lane) && asked_within(call, WAIT_FOR_EVENTS_MS) ? false : answer(call, OUTBOX_ANSWER_DONE);
	if (outbox_recorder_overdue())
		return asked_within(call, WAIT_FOR_EVENTS_MS) ? false : answer(call, OUTBOX_ANSWER_DONE);

	lease = MemoryContextAllocZero(context, sizeof(OutboxLease));
	lease->token = call->token;
	lease->lane = lane;
	lease->until = call->until;
	dlist_init(&lease->items);
	((LeaseEntry *) hash_search(leases, &lease->token, HASH_ENTER, &found))->lease = lease;
	Assert(!found);
	pairingheap_add(expiring, &lease->due);

	while (call->n < call->most && !dlist_is_empty(&lane->ready))
	{
		OutboxItem *item = dlist_head_element(OutboxItem, queue, &lane->ready);

		if (is_unreadable(item))
			break;
		lease_item(item, lease, call, now);
		while (call->n < call->most && (item = outbox_item_follower(item)) != NULL && !is_unreadable(item))
			lease_item(item, lease, call, now);
	}
	OUTBOX_FAULT("lease-after-giving");
	return answer(call, OUTBOX_ANSWER_DONE);
}

static bool
serve_extend(OutboxCall *call)
{
	OutboxLease *lease = find_lease(&call->token, call->subscription);
	dlist_iter	iter;

	if (lease == NULL)
		return answer(call, OUTBOX_ANSWER_STALE);
	pairingheap_remove(expiring, &lease->due);
	lease->until = GetCurrentTimestamp() + call->lease;
	pairingheap_add(expiring, &lease->due);
	dlist_foreach(iter, &lease->items)
	{
		OutboxItem *item = dlist_container(OutboxItem, queue, iter.cur);

		item->leased_until = lease->until;
		if (item->row)
			outbox_item_note(item, OUTBOX_ROW_LEASED, NULL, NULL, true);
	}
	call->until = lease->until;
	return answer(call, OUTBOX_ANSWER_DONE);
}

/* Consumers settle in the order in which they were given: the search goes on where the last one ended. */
static OutboxItem *
find_item(dlist_head *items, dlist_node *from, const pg_uuid_t *id)
{
	dlist_node *node;

	if (dlist_is_empty(items))
		return NULL;
	if (from == NULL)
		from = dlist_head_node(items);
	node = from;
	do
	{
		OutboxItem *item = dlist_container(OutboxItem, queue, node);

		if (memcmp(&item->id, id, sizeof(pg_uuid_t)) == 0)
			return item;
		node = dlist_has_next(items, node) ? dlist_next_node(items, node) : dlist_head_node(items);
	} while (node != from);
	return NULL;
}

/* Is this event of the lease in a settlement of another transaction that has not ended? */
static bool
is_taken(const OutboxLease *lease, const OutboxCall *call, const pg_uuid_t *id)
{
	dlist_iter	iter;

	dlist_foreach(iter, &settlements)
	{
		Settlement *settlement = dlist_container(Settlement, node, iter.cur);
		dlist_iter	items;

		if (is_of(settlement, call->ticket))
			continue;
		dlist_foreach(items, &settlement->items)
		{
			OutboxItem *item = dlist_container(OutboxItem, queue, items.cur);

			if (item->lease == lease && memcmp(&item->id, id, sizeof(pg_uuid_t)) == 0)
				return true;
		}
	}
	return false;
}

static Settlement *
new_settlement(const OutboxCall *call)
{
	Settlement *settlement = MemoryContextAllocZero(context, sizeof(Settlement));

	settlement->ticket = call->ticket;
	settlement->number = call->number;
	settlement->retry_in = call->retry_in;
	settlement->exchange.outcome = call->op == OUTBOX_CALL_ACK ? OUTBOX_DELIVERED : OUTBOX_NACK;
	strlcpy(settlement->exchange.error, call->reason[0] != '\0' ? call->reason : "refused by the consumer", sizeof(settlement->exchange.error));
	dlist_init(&settlement->items);
	dlist_push_tail(&settlements, &settlement->node);
	return settlement;
}

/* All or nothing: what is in the settlement already goes back. */
static bool
refuse_settlement(OutboxCall *call, Settlement *settlement, const OutboxLease *lease, const pg_uuid_t *id)
{
	OutboxCallAnswer with = is_taken(lease, call, id) ? OUTBOX_ANSWER_TAKEN : OUTBOX_ANSWER_FOREIGN;

	call->events[0].id = *id;
	call->n = 1;
	undo(settlement, GetCurrentTimestamp());
	return answer(call, with);
}

static bool
serve_settle(OutboxCall *call)
{
	OutboxLease *lease = find_lease(&call->token, call->subscription);
	Settlement *settlement;
	dlist_node *from = NULL;

	if (lease == NULL)
		return answer(call, OUTBOX_ANSWER_STALE);
	OUTBOX_FAULT("settle-before-answer");
	settlement = new_settlement(call);
	call->settled = call->n;
	while (call->all && !dlist_is_empty(&lease->items))
	{
		dlist_push_tail(&settlement->items, dlist_pop_head_node(&lease->items));
		call->settled++;
	}
	for (int i = 0; i < call->n; i++)
	{
		OutboxItem *item = find_item(&lease->items, from, &call->events[i].id);

		if (item == NULL)
			return refuse_settlement(call, settlement, lease, &call->events[i].id);
		from = dlist_has_next(&lease->items, &item->queue) ? dlist_next_node(&lease->items, &item->queue) : NULL;
		dlist_delete(&item->queue);
		dlist_push_tail(&settlement->items, &item->queue);
	}
	if (dlist_is_empty(&settlement->items))
		forget_settlement(settlement);
	return answer(call, OUTBOX_ANSWER_DONE);
}

static bool
serve_withdraw(OutboxCall *call)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &settlements)
	{
		Settlement *settlement = dlist_container(Settlement, node, iter.cur);

		if (is_of(settlement, call->ticket) && settlement->number == call->number)
			undo(settlement, GetCurrentTimestamp());
	}
	return answer(call, OUTBOX_ANSWER_DONE);
}

static bool
serve(OutboxCall *call)
{
	OutboxLane *lane = outbox_lane_find(call->subscription);

	if (call->op == OUTBOX_CALL_WITHDRAW)
		return serve_withdraw(call);
	if (lane == NULL || !lane->subscription->pull)
		return asked_within(call, WAIT_FOR_LANE_MS) ? false : answer(call, OUTBOX_ANSWER_UNKNOWN);
	switch (call->op)
	{
		case OUTBOX_CALL_LEASE:
			return serve_lease(call, lane);
		case OUTBOX_CALL_EXTEND:
			return serve_extend(call);
		default:
			return serve_settle(call);
	}
}

bool
outbox_lease_step(TimestampTz now)
{
	bool		idle;

	work->changing = true;
	idle = !end_settlements(now);
	while (!pairingheap_is_empty(expiring))
	{
		OutboxLease *lease = pairingheap_container(OutboxLease, due, pairingheap_first(expiring));

		if (lease->until > now)
			break;
		expire(lease, now);
		idle = false;
	}
	served = false;
	waiting = outbox_call_serve(work->database, serve);
	work->changing = false;
	return idle && !served;
}

TimestampTz
outbox_lease_next(void)
{
	TimestampTz next = DT_NOEND;

	if (!pairingheap_is_empty(expiring))
		next = pairingheap_container(OutboxLease, due, pairingheap_first(expiring))->until;
	if (waiting)
		next = Min(next, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PUT_OFF_MS));
	return next;
}
