/*
 * Lanes and items: who waits for what.
 *
 * A lane is a subscription at work; an item is one event for it that is not done.  Guarantees: of the items of a key of a lane with ordering = key only the oldest
 * is ever ready or waiting for a retry, and only while none is in flight; those in flight left together, the oldest first; an item that the cursor may pass is done or has a row in the ledger; what a lane holds beside its exceptions is bounded in events
 * and bytes.
 *
 * An item is "overtaken" when a later one is done: the cursor would have to stay before it, and a restart would repeat the later one; so it gets a row.  It is "settled" for a lane that reads
 * an event again when the lane has a row for it already.
 *
 * It knows nothing of routing, turns or outcomes (dispatch.c), and like dispatch it never waits, reads a table or sends.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "fault.h"
#include "lane.h"

#define LANE_ROOM 1000			/* events a lane holds in memory, beside its exceptions … */
#define LANE_ROOM_BATCHES 10000 /* … at most, if it needs more to fill its batches … */
#define LANE_ROOM_CROWDED 64	/* … when all lanes together hold many */
#define CROWD 50000
#define LANE_BYTES ((Size) 4 * 1024 * 1024)
#define CROWD_BYTES ((Size) 64 * 1024 * 1024)
#define HEAD_PATIENCE_MS 50		/* how long the head waits for a full lane before it goes on without it */
#define SLOW_FOR_MS 10000		/* and how long it does not wait for that lane again */
#define FETCH_FOR_BATCH 256		/* exceptions fetched for a batch at a time */
#define OLDER_LOOKED_AT 100		/* ready items that one which was held back may have to go behind */

/* The items of one key of one lane, oldest first.  Only the first may leave, and others with it, in one request or lease; then all wait until the last of those is back. */
typedef struct KeyId
{
	uint64		hash;
	int32		subscription;
	int32		unused;
} KeyId;

typedef struct OutboxKeyQueue
{
	KeyId		id;
	dlist_head	items;
	int			in_flight;
} KeyQueue;

/* An exception: an item with a delivery row. */
typedef struct RowId
{
	pg_uuid_t	event_id;
	int32		subscription;
} RowId;

typedef struct RowEntry
{
	RowId		id;
	OutboxItem *item;
} RowEntry;

typedef struct LaneEntry
{
	int32		subscription;
	OutboxLane *lane;
} LaneEntry;

static OutboxDatabase *database;
static MemoryContext context;
static HTAB *lanes;
static HTAB *keys;
static HTAB *rows;
static dlist_head tight_lanes = DLIST_STATIC_INIT(tight_lanes);
static dlist_head behind = DLIST_STATIC_INIT(behind);	/* lanes that are not at the head */
static pairingheap *due;
static pairingheap *wakes;		/* lanes with a timer */
static bool head_is_new = false;
static uint64 head_offset = 0;
static int	done = 0;			/* items, since outbox_item_done() was last called */
static int	total_outstanding = 0;
static Size total_bytes = 0;

static int
compare_due(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz first = pairingheap_const_container(OutboxItem, due, a)->next_at;
	TimestampTz second = pairingheap_const_container(OutboxItem, due, b)->next_at;

	return first < second ? 1 : first > second ? -1 : 0;
}

static int
compare_wakes(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz first = pairingheap_const_container(OutboxLane, wake, a)->wake_at;
	TimestampTz second = pairingheap_const_container(OutboxLane, wake, b)->wake_at;

	return first < second ? 1 : first > second ? -1 : 0;
}

static HTAB *
make_hash(const char *name, Size key_size, Size entry_size)
{
	HASHCTL		control = {.keysize = key_size, .entrysize = entry_size, .hcxt = context};

	return hash_create(name, 128, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

void
outbox_lane_init(OutboxDatabase *of)
{
	MemoryContext old;

	database = of;
	context = AllocSetContextCreate(TopMemoryContext, "outbox lanes", ALLOCSET_DEFAULT_SIZES);
	lanes = make_hash("outbox lanes", sizeof(int32), sizeof(LaneEntry));
	keys = make_hash("outbox keys", sizeof(KeyId), sizeof(KeyQueue));
	rows = make_hash("outbox exceptions", sizeof(RowId), sizeof(RowEntry));
	old = MemoryContextSwitchTo(context);
	due = pairingheap_allocate(compare_due, NULL);
	wakes = pairingheap_allocate(compare_wakes, NULL);
	MemoryContextSwitchTo(old);
	outbox_batch_init(context);
}

/* ---- lanes ---- */

bool
outbox_lane_may_send(const OutboxLane *lane)
{
	return lane->subscription->active && !lane->subscription->unreadable && !lane->disabled && !lane->dropped;
}

static void
set_timer(OutboxLane *lane, TimestampTz at)
{
	if (lane->wake_at == at)
		return;
	if (lane->wake_at != 0)
		pairingheap_remove(wakes, &lane->wake);
	lane->wake_at = at;
	if (at != 0)
		pairingheap_add(wakes, &lane->wake);
}

void
outbox_lane_wake(TimestampTz now)
{
	while (outbox_lane_next_wake() <= now)
	{
		OutboxLane *lane = pairingheap_container(OutboxLane, wake, pairingheap_first(wakes));

		set_timer(lane, 0);
		outbox_lane_enlist(lane);
		if (lane->wake_at != 0 && lane->wake_at <= now)
			break;				/* the clock was set back since `now` was read */
	}
}

TimestampTz
outbox_lane_next_wake(void)
{
	if (pairingheap_is_empty(wakes))
		return DT_NOEND;
	return pairingheap_container(OutboxLane, wake, pairingheap_first(wakes))->wake_at;
}

/* The oldest of them, which is not necessarily the first. */
static OutboxItem *
oldest_of(dlist_head *items, OutboxItem *oldest)
{
	dlist_iter	iter;

	dlist_foreach(iter, items)
	{
		OutboxItem *item = dlist_container(OutboxItem, queue, iter.cur);

		if (oldest == NULL || memcmp(&item->id, &oldest->id, sizeof(pg_uuid_t)) < 0)
			oldest = item;
	}
	return oldest;
}

/* What an open breaker is probed with: the oldest event that could be sent, though its next attempt may be due later. */
static void
choose_probe(OutboxLane *lane)
{
	OutboxItem *item = oldest_of(&lane->retrying, oldest_of(&lane->ready, NULL));

	dlist_delete(&item->queue);
	if (item->state == OUTBOX_ITEM_RETRY)
		pairingheap_remove(due, &item->due);
	item->next_at = 0;
	item->state = OUTBOX_ITEM_READY;
	dlist_push_head(&lane->ready, &item->queue);
}

/* Do breaker and rate limit let it send now?  If only later, a timer is set. */
static bool
may_send_now(OutboxLane *lane)
{
	bool		open = lane->breaker.state != OUTBOX_BREAKER_CLOSED;
	double		rate = lane->subscription->rate_limit;
	TimestampTz now;
	TimestampTz at;

	if (!open && rate == 0)
		return true;
	now = at = GetCurrentTimestamp();
	if (open)
	{
		if (lane->breaker.state == OUTBOX_BREAKER_PROBING || lane->fetching > 0)
			return false;
		at = Max(at, lane->breaker.probe_at);
	}
	if (rate > 0)
		at = Max(at, outbox_bucket_next(&lane->bucket, rate, now));
	if (at > now)
	{
		set_timer(lane, at);
		return false;
	}
	if (open)
		choose_probe(lane);
	return true;
}

/* Is there anything that could be sent, if it may be sent? */
static bool
has_candidate(const OutboxLane *lane)
{
	/* dlist_is_empty() does not take a const list before PostgreSQL 16 */
	return !dlist_is_empty(unconstify(dlist_head *, &lane->ready)) ||
		(lane->breaker.state != OUTBOX_BREAKER_CLOSED && !dlist_is_empty(unconstify(dlist_head *, &lane->retrying)));
}

/* Requests' places that are taken, fetched events' too. For a batch many are fetched at a time, but then no more before those are in memory. */
static int
places_taken(const OutboxLane *lane)
{
	const OutboxSubscription *subscription = lane->subscription;

	if (subscription->format != OUTBOX_FORMAT_BATCH)
		return lane->requests + lane->fetching;
	return lane->fetching < Min(subscription->batch_size, FETCH_FOR_BATCH) ? lane->requests : subscription->max_in_flight;
}

static bool
may_be_listed(OutboxLane *lane)
{
	return !lane->listed && !lane->subscription->pull && outbox_lane_may_send(lane) && has_candidate(lane) &&
		places_taken(lane) < outbox_breaker_width(&lane->breaker, lane->subscription->max_in_flight);
}

void
outbox_lane_enlist_ripe(OutboxLane *lane)
{
	if (!may_be_listed(lane) || !may_send_now(lane))
		return;
	set_timer(lane, 0);
	outbox_turns_enlist(lane);
}

/* Puts a lane into the round if it has something to send and may. */
void
outbox_lane_enlist(OutboxLane *lane)
{
	/* a probe is no batch */
	if (may_be_listed(lane) && (lane->breaker.state != OUTBOX_BREAKER_CLOSED || !outbox_batch_waits(lane)))
		outbox_lane_enlist_ripe(lane);
}

void
outbox_lane_delist(OutboxLane *lane)
{
	outbox_batch_forget(lane);
	set_timer(lane, 0);
	outbox_turns_delist(lane);
}

/* When memory is half full, those who get no answers make room first. */
static bool
is_crowded(const OutboxLane *lane)
{
	if (total_outstanding < CROWD / 2 && total_bytes < CROWD_BYTES / 2)
		return false;
	return total_outstanding >= CROWD || total_bytes >= CROWD_BYTES || outbox_turns_trust(lane, GetCurrentTimestamp()) == OUTBOX_SILENT;
}

static int
lane_room(const OutboxLane *lane)
{
	const OutboxSubscription *subscription = lane->subscription;

	if (is_crowded(lane))
		return LANE_ROOM_CROWDED;
	if (subscription->pull)		/* what is leased leaves as much room for those who pull next */
		return Min(LANE_ROOM + 2 * lane->in_flight, LANE_ROOM_BATCHES);
	if (subscription->format != OUTBOX_FORMAT_BATCH)
		return LANE_ROOM;
	/* what is in flight, and as much again */
	return (int) Max(LANE_ROOM, Min((int64) subscription->batch_size * (subscription->max_in_flight + 1) * 2, LANE_ROOM_BATCHES));
}

static Size
lane_bytes(const OutboxLane *lane)
{
	if (is_crowded(lane))
		return LANE_BYTES / 16;
	return lane->subscription->format == OUTBOX_FORMAT_BATCH ? Max(LANE_BYTES, 2 * (Size) lane->subscription->batch_bytes) : LANE_BYTES;
}

/* An open breaker needs one event to probe with; all others stay in the log. */
static bool
is_held_back(const OutboxLane *lane)
{
	return lane->breaker.state != OUTBOX_BREAKER_CLOSED && (has_candidate(lane) || lane->requests + lane->fetching > 0);
}

/* One event always has room, however large. */
bool
outbox_lane_has_room(const OutboxLane *lane)
{
	return outbox_lane_may_send(lane) && !is_held_back(lane) && lane->n_rows < lane->subscription->max_blocked &&
		(lane->n_outstanding == 0 ||
		 (lane->n_outstanding < lane_room(lane) && lane->outstanding_bytes < lane_bytes(lane)));
}

bool
outbox_lane_is_hungry(const OutboxLane *lane)
{
	return !lane->at_head && lane->position.base != NULL && outbox_lane_has_room(lane) &&
		lane->n_outstanding <= lane_room(lane) / 2;
}

/* Keeps track of the lanes that the head should wait for. */
static void
watch_room(OutboxLane *lane)
{
	bool		tight = lane->at_head && lane->n_outstanding > lane_room(lane) / 2;

	if (tight == lane->tight)
		return;
	lane->tight = tight;
	if (tight)
	{
		lane->tight_at = GetCurrentTimestamp();
		dlist_push_tail(&tight_lanes, &lane->tight_node);
	}
	else
		dlist_delete(&lane->tight_node);
}

static void
forget_start(OutboxLane *lane)
{
	if (lane->own_start != NULL)
		outbox_tick_unpin(lane->own_start);
	lane->own_start = NULL;
}

void
outbox_lane_begin(OutboxLane *lane, const OutboxPosition *position, OutboxTick *own)
{
	forget_start(lane);
	outbox_position_set(&lane->position, position);
	lane->own_start = own;
}

bool
outbox_lane_is_before_start(const OutboxLane *lane, uint64 xid)
{
	return lane->own_start != NULL && lane->position.base->number == 0 && outbox_snapshot_sees(lane->own_start->snapshot, xid);
}

/* Cursors, and whatever else is written down of a position, know nothing of shared starts.  What the lane has passed is the same either way. */
static OutboxPosition
from_own_start(const OutboxLane *lane, OutboxPosition position)
{
	if (lane->own_start == NULL || position.base->number != 0)
		return position;
	if (position.upper == position.base)
		position.upper = lane->own_start;
	position.base = lane->own_start;
	return position;
}

OutboxPosition
outbox_lane_position(const OutboxLane *lane)
{
	return from_own_start(lane, lane->position);
}

void
outbox_lane_fall_off(OutboxLane *lane, const OutboxPosition *position)
{
	if (lane->at_head)
	{
		dlist_push_tail(&behind, &lane->behind);
		lane->offset = head_offset;
	}
	lane->at_head = false;
	lane->slow = true;
	lane->need_settled |= !head_is_new;
	lane->fell_at = GetCurrentTimestamp();
	outbox_position_set(&lane->position, position);
	watch_room(lane);
}

static void
forget_done(OutboxLane *lane)
{
	if (lane->done_ahead != NULL)
		hash_destroy(lane->done_ahead);
	lane->done_ahead = NULL;
}

void
outbox_lane_head_is_new(void)
{
	HASH_SEQ_STATUS scan;
	LaneEntry  *entry;

	if (head_is_new)
		return;
	head_is_new = true;
	hash_seq_init(&scan, lanes);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (!entry->lane->need_settled)
			forget_done(entry->lane);
	}
}

bool
outbox_lane_is_settled(const OutboxLane *lane, const OutboxChunk *chunk, int index)
{
	const pg_uuid_t *id = &chunk->events[index].event.id;

	return outbox_chunk_is_settled(chunk, lane->subscription->id, id) ||
		(lane->done_ahead != NULL && hash_search(lane->done_ahead, id, HASH_FIND, NULL) != NULL);
}

void
outbox_lane_attach(OutboxLane *lane)
{
	if (!lane->at_head)
		dlist_delete(&lane->behind);
	lane->at_head = true;
	lane->need_settled = false;
	if (head_is_new)
		forget_done(lane);
	outbox_position_clear(&lane->position);
	if (lane->n_outstanding == 0)	/* else it may yet give something back */
		forget_start(lane);
	if (lane->slow && TimestampDifferenceExceeds(lane->fell_at, GetCurrentTimestamp(), SLOW_FOR_MS))
		lane->slow = false;
	watch_room(lane);
}

void
outbox_lane_head_at(uint64 offset)
{
	head_offset = offset;
}

uint64
outbox_lane_offset(const OutboxLane *lane)
{
	uint64		read = lane->at_head ? head_offset : lane->offset;

	return read - Min(read, (uint64) lane->n_outstanding);
}

OutboxLane *
outbox_lane_find(int32 subscription)
{
	LaneEntry  *entry = hash_search(lanes, &subscription, HASH_FIND, NULL);

	return entry == NULL ? NULL : entry->lane;
}

bool
outbox_lane_is_any(void)
{
	return hash_get_num_entries(lanes) > 0;
}

List *
outbox_lane_all(void)
{
	HASH_SEQ_STATUS scan;
	LaneEntry  *entry;
	List	   *list = NIL;

	hash_seq_init(&scan, lanes);
	while ((entry = hash_seq_search(&scan)) != NULL)
		list = lappend(list, entry->lane);
	return list;
}

List *
outbox_lane_hungry(void)
{
	List	   *list = NIL;
	dlist_iter	iter;

	dlist_foreach(iter, &behind)
	{
		OutboxLane *lane = dlist_container(OutboxLane, behind, iter.cur);

		if (outbox_lane_is_hungry(lane))
			list = lappend(list, lane);
	}
	return list;
}

void
outbox_lane_was_fed(OutboxLane *lane)
{
	if (lane->at_head)
		return;
	dlist_delete(&lane->behind);
	dlist_push_tail(&behind, &lane->behind);
}

bool
outbox_lane_head_may_read(TimestampTz now)
{
	dlist_iter	iter;

	dlist_foreach(iter, &tight_lanes)
	{
		OutboxLane *lane = dlist_container(OutboxLane, tight_node, iter.cur);

		if (!lane->slow && outbox_turns_trust(lane, now) != OUTBOX_SILENT && !TimestampDifferenceExceeds(lane->tight_at, now, HEAD_PATIENCE_MS))
			return false;
	}
	return true;
}

/* ---- items: the queues they stand in ---- */

/*
 * Among the ready ones, in the order in which they entered: put before all, the items of one key would overtake those of others, which would then need rows.  Beyond so many that are
 * older it does not look.
 */
static void
queue_by_age(OutboxItem *item)
{
	dlist_head *ready = &item->lane->ready;
	dlist_node *before = &ready->head;

	if (dlist_is_empty(ready))
	{
		dlist_push_head(ready, &item->queue);
		return;
	}
	for (int i = 0; i < OLDER_LOOKED_AT && dlist_has_next(ready, before); i++)
	{
		dlist_node *next = before->next;

		if (dlist_container(OutboxItem, queue, next)->seq >= item->seq)
			break;
		before = next;
	}
	dlist_insert_after(before, &item->queue);
}

void
outbox_item_ready(OutboxItem *item, bool by_age)
{
	OutboxLane *lane = item->lane;

	item->state = OUTBOX_ITEM_READY;
	if (by_age)
		queue_by_age(item);
	else
		dlist_push_tail(&lane->ready, &item->queue);
	outbox_lane_enlist(lane);
}

void
outbox_item_retry(OutboxItem *item)
{
	item->state = OUTBOX_ITEM_RETRY;
	dlist_push_tail(&item->lane->retrying, &item->queue);
	pairingheap_add(due, &item->due);
}

static TimestampTz
next_retry(void)
{
	if (pairingheap_is_empty(due))
		return DT_NOEND;
	return pairingheap_container(OutboxItem, due, pairingheap_first(due))->next_at;
}

void
outbox_item_due(TimestampTz now)
{
	while (next_retry() <= now)
	{
		OutboxItem *item = pairingheap_container(OutboxItem, due, pairingheap_remove_first(due));

		dlist_delete(&item->queue);
		item->next_at = 0;
		outbox_item_ready(item, false);
	}
	outbox_batch_ripen(now);
}

TimestampTz
outbox_item_next_due(void)
{
	return Min(next_retry(), outbox_batch_next_ripe());
}

/* The items of its key, made if there are none. */
static KeyQueue *
key_queue(const OutboxItem *item)
{
	KeyId		id = {.hash = item->key_hash, .subscription = item->lane->subscription->id};
	bool		found;
	KeyQueue   *queue = hash_search(keys, &id, HASH_ENTER, &found);

	if (!found)
	{
		dlist_init(&queue->items);
		queue->in_flight = 0;
	}
	return queue;
}

bool
outbox_item_is_first(const OutboxItem *item)
{
	return !item->keyed || dlist_head_node(&item->of_key->items) == &item->key_node;
}

/* Leaves whatever its state made it stand in. */
static void
unqueue(OutboxItem *item)
{
	switch (item->state)
	{
		case OUTBOX_ITEM_FETCHING:
			item->lane->fetching--;
			/* fall through */
		case OUTBOX_ITEM_READY:
			dlist_delete(&item->queue);
			break;
		case OUTBOX_ITEM_RETRY:
			dlist_delete(&item->queue);
			pairingheap_remove(due, &item->due);
			break;
		case OUTBOX_ITEM_WAITING:
		case OUTBOX_ITEM_IN_FLIGHT:
		case OUTBOX_ITEM_HELD:
			break;
	}
}

/* Nothing of its key is before this item any more. */
static void
wait_no_longer(OutboxItem *item)
{
	Assert(item->state == OUTBOX_ITEM_WAITING);
	if (item->dead)
		item->state = OUTBOX_ITEM_HELD;
	else if (item->next_at != 0)
		outbox_item_retry(item);
	else
		outbox_item_ready(item, true);
}

/* The first of a key may go, when its time has come, unless one is still in flight. */
static void
advance_key(KeyQueue *queue)
{
	OutboxItem *first = dlist_head_element(OutboxItem, key_node, &queue->items);

	if (queue->in_flight == 0 && first->state == OUTBOX_ITEM_WAITING)
		wait_no_longer(first);
}

static void
leave_key(OutboxItem *item)
{
	KeyQueue   *queue;

	if (!item->keyed)
		return;
	queue = item->of_key;
	dlist_delete(&item->key_node);
	item->keyed = false;
	if (item->state == OUTBOX_ITEM_IN_FLIGHT)
		queue->in_flight--;
	if (dlist_is_empty(&queue->items))
		hash_search(keys, &queue->id, HASH_REMOVE, NULL);
	else
		advance_key(queue);
}

void
outbox_item_fly(OutboxItem *item, TimestampTz now)
{
	OutboxLane *lane = item->lane;

	if (item->state == OUTBOX_ITEM_READY)
		dlist_delete(&item->queue);
	item->state = OUTBOX_ITEM_IN_FLIGHT;
	item->subscription = outbox_subscription_pin(lane->subscription);
	item->started_at = now;
	item->next_at = 0;
	if (item->first_at == 0)
		item->first_at = now;
	lane->in_flight++;
	lane->flying_bytes += item->size;
	if (item->keyed)
		item->of_key->in_flight++;
}

OutboxItem *
outbox_item_follower(OutboxItem *item)
{
	KeyQueue   *queue;
	OutboxItem *next;

	if (!item->keyed)
		return NULL;
	queue = item->of_key;
	if (!dlist_has_next(&queue->items, &item->key_node))
		return NULL;
	next = dlist_container(OutboxItem, key_node, dlist_next_node(&queue->items, &item->key_node));
	return next->state == OUTBOX_ITEM_WAITING && !next->dead && (next->next_at == 0 || next->next_at <= GetCurrentTimestamp()) ? next : NULL;
}

void
outbox_item_land(OutboxItem *item)
{
	Assert(item->state == OUTBOX_ITEM_IN_FLIGHT);
	item->state = OUTBOX_ITEM_WAITING;
	if (item->keyed)
	{
		KeyQueue   *queue = item->of_key;

		queue->in_flight--;
		advance_key(queue);
	}
	else
		wait_no_longer(item);
}

void
outbox_item_release(OutboxItem *item)
{
	if (item->chunk != NULL)
		outbox_chunk_unpin(item->chunk);
	item->chunk = NULL;
	item->logged = NULL;
}

static void
leave_outstanding(OutboxItem *item)
{
	dlist_delete(&item->outstanding);
	item->lane->n_outstanding--;
	total_outstanding--;
	item->lane->outstanding_bytes -= item->size;
	total_bytes -= item->size;
	watch_room(item->lane);
}

/* The item is nobody's any more. */
void
outbox_item_free(OutboxItem *item)
{
	OutboxLane *lane = item->lane;

	unqueue(item);
	leave_key(item);
	if (item->row)
	{
		RowId		id = {.event_id = item->id, .subscription = lane->subscription->id};

		hash_search(rows, &id, HASH_REMOVE, NULL);
		lane->n_rows--;
		outbox_item_set_replayed(item, false);
	}
	else
		leave_outstanding(item);
	outbox_item_release(item);
	pfree(item);
}

/*
 * What the tables brought has no place among what this worker has read, and no row any more: it must not be met again.  Not by this worker, if it has not read so far yet; and not by the
 * next one, which would if the cursor stayed before what is still outstanding.
 */
static void
finish_taken_over(OutboxItem *item)
{
	OutboxLane *lane = item->lane;
	dlist_iter	iter;

	dlist_foreach(iter, &lane->outstanding)
	{
		OutboxItem *other = dlist_container(OutboxItem, outstanding, iter.cur);

		if (memcmp(&other->log_id, &item->log_id, sizeof(pg_uuid_t)) > 0)
			break;
		lane->max_done_seq = Max(lane->max_done_seq, other->seq + 1);
	}
	if (item->inherited && (lane->need_settled || !head_is_new))
	{
		if (lane->done_ahead == NULL)
			lane->done_ahead = make_hash("outbox exceptions that are done", sizeof(pg_uuid_t), sizeof(pg_uuid_t));
		(void) hash_search(lane->done_ahead, &item->id, HASH_ENTER, NULL);
	}
}

/* Delivered, dead, or dropped by an operator. */
void
outbox_item_finish(OutboxItem *item)
{
	OutboxLane *lane = item->lane;

	lane->max_done_seq = Max(lane->max_done_seq, item->seq);
	if (item->row && item->seq == 0)
		finish_taken_over(item);
	done++;
	outbox_item_free(item);
}

int
outbox_item_done(void)
{
	int			result = done;

	done = 0;
	return result;
}

static OutboxItem *
new_item(OutboxLane *lane, const pg_uuid_t *id, const pg_uuid_t *log_id, bool keyed, uint64 key_hash)
{
	OutboxItem *item = MemoryContextAllocZero(context, sizeof(OutboxItem));

	item->lane = lane;
	item->id = *id;
	item->log_id = *log_id;
	item->seq = ++lane->next_seq;
	item->keyed = keyed;
	item->key_hash = key_hash;
	return item;
}

/* Joins the items of its key; true if it is the first of them (or has no key) and need not wait. */
static bool
join_key(OutboxItem *item)
{
	KeyQueue   *queue;
	bool		first;

	if (!item->keyed)
		return true;
	queue = item->of_key = key_queue(item);
	first = dlist_is_empty(&queue->items);
	dlist_push_tail(&queue->items, &item->key_node);
	return first;
}

void
outbox_lane_enter(OutboxLane *lane, OutboxChunk *chunk, int index)
{
	const OutboxLoggedEvent *logged = &chunk->events[index];
	OutboxItem *item = new_item(lane, &logged->event.id, &logged->event.log_id,
								lane->subscription->ordered && logged->event.key != NULL, logged->key_hash);

	item->entered_at = GetCurrentTimestamp();
	item->chunk = outbox_chunk_pin(chunk);
	item->logged = logged;
	item->index = index;
	dlist_push_tail(&lane->outstanding, &item->outstanding);
	lane->n_outstanding++;
	total_outstanding++;
	item->size = logged->event.body_size;
	lane->outstanding_bytes += item->size;
	total_bytes += item->size;
	watch_room(lane);
	if (join_key(item))
		outbox_item_ready(item, false);
	else
	{
		item->state = OUTBOX_ITEM_WAITING;
		if (lane->lingers)
			outbox_lane_enlist(lane);	/* it may fill the batch */
	}
}

/* ---- exceptions: what lets the cursor pass ---- */

void
outbox_item_note(OutboxItem *item, OutboxRowStatus status, const OutboxExchange *exchange, const char *reason, bool known)
{
	OutboxRow	row = {
		.subscription = item->lane->subscription->id,
		.event_id = item->id,
		.log_id = item->log_id,
		.status = status,
		.key = item->lane->subscription->ordered && item->logged != NULL ? item->logged->event.key : NULL,
		.attempts = item->attempts,
		.first_at = item->first_at,
		.next_at = status == OUTBOX_ROW_RETRYING ? item->next_at : status == OUTBOX_ROW_LEASED ? item->leased_until : 0,
		.reason = reason
	};

	if (item->lane->dropped)
		return;
	if (exchange != NULL)
	{
		row.status_code = exchange->status;
		row.error = exchange->outcome == OUTBOX_DELIVERED ? NULL : exchange->error;
	}
	outbox_ledger_put(&row, known);
}

/* Makes an item an exception. */
void
outbox_item_make_row(OutboxItem *item, OutboxRowStatus status, const OutboxExchange *exchange, const char *reason)
{
	OutboxLane *lane = item->lane;
	RowId		id = {.event_id = item->id, .subscription = lane->subscription->id};
	RowEntry   *entry;

	lane->max_row_seq = Max(lane->max_row_seq, item->seq);
	outbox_item_note(item, status, exchange, reason, false);
	entry = hash_search(rows, &id, HASH_ENTER, NULL);
	entry->item = item;
	leave_outstanding(item);
	item->row = true;
	lane->n_rows++;

	/* who has leased it reads it by himself, and may keep it for long */
	if (item->state != OUTBOX_ITEM_IN_FLIGHT || item->lease != NULL)
		outbox_item_release(item);
}

void
outbox_item_take_over(OutboxLane *lane, const OutboxException *exception, bool inherited)
{
	RowId		id = {.event_id = exception->event_id, .subscription = exception->subscription};
	OutboxItem *item = new_item(lane, &exception->event_id, &exception->log_id,
								lane->subscription->ordered && exception->keyed, exception->key_hash);
	RowEntry   *entry = hash_search(rows, &id, HASH_ENTER, NULL);

	entry->item = item;
	item->seq = 0;				/* its end says nothing about those that are outstanding */
	item->row = true;
	item->inherited = inherited;
	item->seen = true;
	item->attempts = exception->attempts;
	item->first_at = exception->first_at;
	item->next_at = exception->status == OUTBOX_ROW_RETRYING || exception->status == OUTBOX_ROW_LEASED ? exception->next_at : 0;
	if (!lane->subscription->pull)	/* no retry is further away, unless the clock has been set back */
		item->next_at = Min(item->next_at, GetCurrentTimestamp() + lane->subscription->retry.max);
	item->dead = exception->status == OUTBOX_ROW_DEAD;
	lane->n_rows++;
	outbox_item_set_replayed(item, exception->replay);
	OUTBOX_FAULT("exception-half-entered");

	if (!join_key(item))
		item->state = OUTBOX_ITEM_WAITING;
	else if (item->dead)
		item->state = OUTBOX_ITEM_HELD;
	else if (item->next_at != 0)
		outbox_item_retry(item);
	else
		outbox_item_ready(item, false);
}

void
outbox_item_set_replayed(OutboxItem *item, bool replayed)
{
	item->lane->n_replayed += replayed - item->replayed;
	item->replayed = replayed;
}

void
outbox_item_each_exception(void (*visit) (OutboxItem *item))
{
	HASH_SEQ_STATUS scan;
	RowEntry   *entry;

	hash_seq_init(&scan, rows);
	while ((entry = hash_seq_search(&scan)) != NULL)
		visit(entry->item);
}

OutboxItem *
outbox_item_exception(int32 subscription, const pg_uuid_t *event_id)
{
	RowId		id = {.event_id = *event_id, .subscription = subscription};
	RowEntry   *entry = hash_search(rows, &id, HASH_FIND, NULL);

	return entry == NULL ? NULL : entry->item;
}

/* Is the first item of this one's key an exception that waits? */
static bool
key_is_blocked(const OutboxItem *item)
{
	const OutboxItem *first = dlist_head_element(OutboxItem, key_node, &item->of_key->items);

	return first->row && (first->state == OUTBOX_ITEM_RETRY || first->state == OUTBOX_ITEM_HELD);
}

/* Gives an outstanding item the row that its state calls for. */
static void
pass(OutboxItem *item)
{
	switch (item->state)
	{
		case OUTBOX_ITEM_IN_FLIGHT:
			outbox_item_make_row(item, item->lease != NULL ? OUTBOX_ROW_LEASED : OUTBOX_ROW_SENDING, NULL, NULL);
			break;
		case OUTBOX_ITEM_WAITING:
			outbox_item_make_row(item, item->next_at == 0 ? OUTBOX_ROW_BLOCKED : OUTBOX_ROW_RETRYING, NULL, NULL);
			break;
		case OUTBOX_ITEM_READY:
		case OUTBOX_ITEM_FETCHING:
		case OUTBOX_ITEM_RETRY:
		case OUTBOX_ITEM_HELD:
			if (item->next_at == 0)
				item->next_at = item->entered_at;
			outbox_item_make_row(item, OUTBOX_ROW_RETRYING, NULL, NULL);
			break;
	}
}

/*
 * at_once: the lane is about to go back to where its oldest item without a row begins.  Whatever lies beyond that place must then be untouched: not done, not an exception, not in flight, or
 * it would be sent again when it is read again.
 */
bool
outbox_lane_pass_overtaken(OutboxLane *lane, bool at_once)
{
	uint64		touched = at_once ? Max(lane->max_done_seq, lane->max_row_seq + 1) : lane->marked_done_seq;
	bool		young = false;
	dlist_mutable_iter iter;

	if (at_once)
	{
		dlist_foreach_modify(iter, &lane->outstanding)
		{
			OutboxItem *item = dlist_container(OutboxItem, outstanding, iter.cur);

			if (item->state == OUTBOX_ITEM_IN_FLIGHT)
				touched = Max(touched, item->seq + 1);
		}
	}
	dlist_foreach_modify(iter, &lane->outstanding)
	{
		OutboxItem *item = dlist_container(OutboxItem, outstanding, iter.cur);
		bool		overtaken = item->seq < touched;

		if (!overtaken && (at_once || item->state != OUTBOX_ITEM_WAITING || !key_is_blocked(item)))
		{
			young |= item->seq < lane->max_done_seq;
			continue;
		}
		if (lane->n_rows >= lane->subscription->max_blocked && !at_once)
			break;
		pass(item);
	}
	return young;
}

/* ---- coming and going ---- */

OutboxLane *
outbox_lane_create(OutboxSubscription *subscription)
{
	OutboxLane *lane = MemoryContextAllocZero(context, sizeof(OutboxLane));
	LaneEntry  *entry = hash_search(lanes, &subscription->id, HASH_ENTER, NULL);

	entry->lane = lane;
	lane->subscription = outbox_subscription_pin(subscription);
	lane->need_settled = true;
	dlist_push_tail(&behind, &lane->behind);
	dlist_init(&lane->outstanding);
	dlist_init(&lane->ready);
	dlist_init(&lane->retrying);
	outbox_turns_join(lane);
	lane->status = outbox_bell_lane(database, subscription->id, true);
	return lane;
}

void
outbox_lane_free(OutboxLane *lane)
{
	outbox_position_clear(&lane->position);
	outbox_position_clear(&lane->written);
	forget_done(lane);
	forget_start(lane);
	outbox_subscription_unpin(lane->subscription);
	pfree(lane);
}

bool
outbox_lane_cursor(OutboxLane *lane, OutboxPosition *position)
{
	if (!dlist_is_empty(&lane->outstanding))
	{
		const OutboxItem *first = dlist_container(OutboxItem, outstanding, lane->outstanding.head.next);

		*position = from_own_start(lane, outbox_chunk_before(first->chunk, first->index));
		return true;
	}
	if (lane->at_head)
		return false;
	*position = outbox_lane_position(lane);
	return true;
}

/*
 * A lane that may not send gives its memory back: what was touched, and all before it, becomes an exception; the rest goes back to the log, to be read again from
 * where it starts.  Nothing after that place was touched, so nothing is repeated.
 */
void
outbox_lane_shed(OutboxLane *lane)
{
	dlist_mutable_iter iter;
	OutboxPosition position;

	outbox_lane_pass_overtaken(lane, true);
	if (dlist_is_empty(&lane->outstanding))
		return;
	if (outbox_lane_cursor(lane, &position))
		outbox_lane_fall_off(lane, &position);
	lane->offset = outbox_lane_offset(lane);	/* what goes back has not been passed */
	lane->need_settled = true;
	dlist_foreach_modify(iter, &lane->outstanding)
		outbox_item_free(dlist_container(OutboxItem, outstanding, iter.cur));
}

/* Out of its key, whoever comes after it. */
static void
drop_key(OutboxItem *item)
{
	KeyQueue   *queue;

	if (!item->keyed)
		return;
	queue = item->of_key;
	dlist_delete(&item->key_node);
	item->keyed = false;
	if (item->state == OUTBOX_ITEM_IN_FLIGHT)
		queue->in_flight--;
	if (dlist_is_empty(&queue->items))
		hash_search(keys, &queue->id, HASH_REMOVE, NULL);
	if (item->state == OUTBOX_ITEM_WAITING)
		wait_no_longer(item);
}

/* Dead ones that held their key back leave memory; their rows stay. */
void
outbox_lane_unorder(OutboxLane *lane)
{
	HASH_SEQ_STATUS scan;
	RowEntry   *entry;
	dlist_iter	iter;

	dlist_foreach(iter, &lane->outstanding)
		drop_key(dlist_container(OutboxItem, outstanding, iter.cur));
	hash_seq_init(&scan, rows);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->item->lane != lane)
			continue;
		drop_key(entry->item);
		if (entry->item->state == OUTBOX_ITEM_HELD)
			outbox_item_free(entry->item);
	}
}

static void
drop_rows(OutboxLane *lane)
{
	HASH_SEQ_STATUS scan;
	RowEntry   *entry;

	hash_seq_init(&scan, rows);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->item->lane == lane && entry->item->state != OUTBOX_ITEM_IN_FLIGHT)
			outbox_item_free(entry->item);
	}
}

void
outbox_lane_drop(OutboxLane *lane)
{
	int32		id = lane->subscription->id;

	lane->dropped = true;
	outbox_lane_delist(lane);
	if (lane->n_outstanding > 0)
		outbox_lane_shed(lane);
	if (lane->n_rows > 0)
		drop_rows(lane);
	if (!lane->at_head)
		dlist_delete(&lane->behind);
	lane->at_head = false;
	watch_room(lane);
	outbox_turns_leave(lane);
	hash_search(lanes, &id, HASH_REMOVE, NULL);
	outbox_bell_forget_lane(database, id);
	lane->status = NULL;		/* soon another subscription's, while items of this one are still in flight */
	if (lane->in_flight == 0)
		outbox_lane_free(lane);
}
