/*
 * Ticks, windows and chunks.
 *
 * A tick in memory costs nothing: no xid, no row.  What makes it a promise is a WAL record that was written after its
 * snapshot was taken, and flushed.  The commit record of everything the snapshot saw precedes that record, so once it is on disk (and on the
 * synchronous standbys), what is sent can never turn out not to have happened.
 *
 * Chunks are cached by place, least recently used last, bounded in number and bytes.  Subscriptions that move together read the log once.
 *
 * All of it lives in one memory context of the worker; only http's exchanges point into chunks, and they pin them.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_control.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/lwlock.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "event_id.h"
#include "fault.h"
#include "filter.h"
#include "ledger.h"
#include "tick.h"
#include "utf8.h"

#define CHUNK_EVENTS 512
#define CHUNK_BYTES ((Size) 1024 * 1024)
#define CACHE_CHUNKS 512
#define CACHE_BYTES ((Size) 32 * 1024 * 1024)

static OutboxTick nothing = {.durable = true, .pins = 1};
static OutboxTick everything = {.number = PG_INT64_MAX, .durable = true, .pins = 1};
/* Where a chunk begins: its key in the cache. */
typedef struct Place
{
	int64		restored;
	OutboxTick *base;
	OutboxTick *upper;			/* NULL unless partial */
	pg_uuid_t	after;			/* zero unless partial */
} Place;

typedef struct PlaceEntry
{
	Place		place;
	OutboxChunk *chunk;
} PlaceEntry;

static HTAB *places = NULL;
static dlist_head cache = DLIST_STATIC_INIT(cache);
static int	cached_chunks = 0;
static Size cached_bytes = 0;

/* ---- ticks ---- */

OutboxTick *
outbox_tick_nothing(void)
{
	return &nothing;
}

OutboxTick *
outbox_tick_everything(void)
{
	return &everything;
}

static OutboxTick *
make_tick(uint64 number, const OutboxSnapshot *snapshot, TimestampTz at)
{
	OutboxTick *tick = MemoryContextAllocZero(TopMemoryContext, sizeof(OutboxTick));

	if (snapshot != NULL)
	{
		Size		size = offsetof(OutboxSnapshot, xip) + snapshot->nxip * sizeof(uint64);

		tick->snapshot = MemoryContextAlloc(TopMemoryContext, size);
		memcpy(tick->snapshot, snapshot, size);
	}
	tick->number = number;
	tick->at = at;
	tick->pins = 1;
	return tick;
}

/*
 * The number is taken before the snapshot: whoever seals a segment reads the counter, and a tick with a higher number is sure to have begun
 * afterwards.
 */
OutboxTick *
outbox_tick_take(OutboxDatabase *database)
{
	uint64		number = pg_atomic_add_fetch_u64(&database->tick, 1);

	Assert(!TransactionIdIsValid(GetTopTransactionIdIfAny()));
	PushActiveSnapshot(GetTransactionSnapshot());
	return make_tick(number, outbox_snapshot_take(GetActiveSnapshot(), &database->clock, false), GetCurrentTimestamp());
}

OutboxTick *
outbox_tick_restore(uint64 number, OutboxSnapshot *snapshot, uint64 offset, TimestampTz at)
{
	OutboxTick *tick = make_tick(number, snapshot, at);

	tick->offset = offset;
	tick->lsn = GetFlushRecPtr(NULL);	/* its row was flushed after it */
	return tick;
}

OutboxTick *
outbox_tick_pin(OutboxTick *tick)
{
	tick->pins++;
	return tick;
}

void
outbox_tick_unpin(OutboxTick *tick)
{
	if (--tick->pins > 0 || tick == &nothing || tick == &everything)
		return;
	if (tick->snapshot != NULL)
		pfree(tick->snapshot);
	pfree(tick);
}

/*
 * Not XLogFlush(GetXLogInsertRecPtr()): that pointer can lie past a page header that is not written yet, and the flush then fails.  The end
 * of a record of our own is always a valid place to flush to.
 */
void
outbox_tick_flush(OutboxTick *tick)
{
	if (tick->durable || tick->lsn != InvalidXLogRecPtr)
		return;

	OUTBOX_FAULT("tick-before-flush");
	if (GetFlushRecPtr(NULL) >= GetXLogInsertRecPtr())
		tick->lsn = GetFlushRecPtr(NULL);
	else
	{
		char		nothing_to_say = 0;

		XLogBeginInsert();
		XLogRegisterData(&nothing_to_say, 1);
		tick->lsn = XLogInsert(RM_XLOG_ID, XLOG_NOOP);
		XLogFlush(tick->lsn);
	}
	OUTBOX_FAULT("tick-after-flush");
}

bool
outbox_tick_durable(OutboxTick *tick)
{
	if (tick->durable)
		return true;
	if (tick->lsn == InvalidXLogRecPtr)
		return false;

	if (OutboxSyncStandbysDefined())
	{
		XLogRecPtr	confirmed;

		LWLockAcquire(SyncRepLock, LW_SHARED);
		confirmed = WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH];
		LWLockRelease(SyncRepLock);
		if (confirmed < tick->lsn)
			return false;
	}
	tick->durable = true;
	return true;
}

/* ---- positions ---- */

void
outbox_position_set(OutboxPosition *position, const OutboxPosition *value)
{
	OutboxPosition old = *position;

	outbox_tick_pin(value->base);
	outbox_tick_pin(value->upper);
	*position = *value;
	if (old.base != NULL)
	{
		outbox_tick_unpin(old.base);
		outbox_tick_unpin(old.upper);
	}
}

void
outbox_position_clear(OutboxPosition *position)
{
	if (position->base != NULL)
	{
		outbox_tick_unpin(position->base);
		outbox_tick_unpin(position->upper);
	}
	memset(position, 0, sizeof(*position));
}

bool
outbox_position_same(const OutboxPosition *a, const OutboxPosition *b)
{
	if (a->base != b->base || a->partial != b->partial || a->restored != b->restored)
		return false;
	return !a->partial || (a->upper == b->upper && memcmp(&a->after, &b->after, sizeof(pg_uuid_t)) == 0);
}

OutboxPosition
outbox_chunk_before(const OutboxChunk *chunk, int i)
{
	OutboxPosition position = chunk->from;

	if (i == 0)
		return position;
	position.inside = true;
	position.begun_partial = position.partial;
	position.begun_after = position.after;
	position.upper = chunk->to.upper;
	position.partial = true;
	position.after = chunk->events[i - 1].event.log_id;
	return position;
}

int
outbox_chunk_index(const OutboxChunk *chunk, const OutboxPosition *position)
{
	int			low = 0;
	int			high = chunk->n;

	if (!position->inside)
		return 0;
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (memcmp(&chunk->events[middle].event.log_id, &position->after, sizeof(pg_uuid_t)) <= 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

bool
outbox_chunk_ends_before(const OutboxChunk *chunk, const OutboxPosition *position)
{
	return position->inside && chunk->to.partial && memcmp(&chunk->to.after, &position->after, sizeof(pg_uuid_t)) < 0;
}

uint64
outbox_chunk_hash(const char *name)
{
	return hash_bytes_extended((const unsigned char *) name, strlen(name), 0);
}

/* ---- the cache ---- */

/* Where the chunk begins that somebody at this position is at the beginning or in the middle of. */
static OutboxPosition
beginning(const OutboxPosition *position)
{
	OutboxPosition begin = *position;

	if (position->inside)
	{
		begin.partial = position->begun_partial;
		begin.after = position->begun_after;
		begin.inside = false;
		if (!begin.partial)
			begin.upper = begin.base;
	}
	return begin;
}

static void
free_chunk(OutboxChunk *chunk)
{
	outbox_position_clear(&chunk->from);
	outbox_position_clear(&chunk->to);
	MemoryContextDelete(chunk->context);
}

static Place
place_of(const OutboxPosition *position)
{
	Place		place;

	memset(&place, 0, sizeof(place));	/* the key is compared as bytes */
	place.restored = position->restored;
	place.base = position->base;
	if (position->partial)
	{
		place.upper = position->upper;
		place.after = position->after;
	}
	return place;
}

static void
uncache_chunk(OutboxChunk *chunk)
{
	Place		place = place_of(&chunk->from);

	hash_search(places, &place, HASH_REMOVE, NULL);
	dlist_delete(&chunk->node);
	cached_chunks--;
	cached_bytes -= chunk->bytes;
	chunk->cached = false;
	outbox_chunk_unpin(chunk);
}

/* A chunk leaves the cache when it is too old or the cache too large; whoever pins it keeps it alive. */
static void
trim_cache(void)
{
	while ((cached_chunks > CACHE_CHUNKS || cached_bytes > CACHE_BYTES) && cached_chunks > 1)
	{
		OutboxChunk *chunk = dlist_tail_element(OutboxChunk, node, &cache);

		uncache_chunk(chunk);
	}
}

/* A new chunk takes the place of one that begins where it does (and does not know who has settled what). */
static void
cache_chunk(OutboxChunk *chunk)
{
	Place		place = place_of(&chunk->from);
	PlaceEntry *entry;
	bool		found;

	if (places == NULL)
	{
		HASHCTL		control = {.keysize = sizeof(Place), .entrysize = sizeof(PlaceEntry), .hcxt = TopMemoryContext};

		places = hash_create("outbox chunks", CACHE_CHUNKS, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	entry = hash_search(places, &place, HASH_FIND, NULL);
	if (entry != NULL)
		uncache_chunk(entry->chunk);
	entry = hash_search(places, &place, HASH_ENTER, &found);
	entry->chunk = chunk;
	dlist_push_head(&cache, &chunk->node);
	chunk->pins++;				/* the cache's own */
	cached_chunks++;
	cached_bytes += chunk->bytes;
	chunk->cached = true;
	trim_cache();
}

/*
 * Parsed once for all filters, and kept with the chunk, until those of a chunk take as much memory as its events may; of the others only the last one is at hand.
 */
Jsonb *
outbox_chunk_payload(OutboxChunk *chunk, int index)
{
	static MemoryContext parsing = NULL;
	static Jsonb *last = NULL;
	static pg_uuid_t last_id;
	OutboxLoggedEvent *logged = &chunk->events[index];
	MemoryContext old;
	Size		size;

	if (logged->payload != NULL || !logged->event.json || logged->event.body == NULL)
		return logged->payload;
	if (last != NULL && memcmp(&last_id, &logged->event.log_id, sizeof(pg_uuid_t)) == 0)
		return last;

	if (parsing == NULL)
		parsing = AllocSetContextCreate(TopMemoryContext, "outbox payload", ALLOCSET_DEFAULT_SIZES);
	last = NULL;
	MemoryContextReset(parsing);
	old = MemoryContextSwitchTo(parsing);
	last = outbox_filter_payload(logged->event.body);
	MemoryContextSwitchTo(old);
	if (last == NULL)
		return NULL;
	last_id = logged->event.log_id;

	size = VARSIZE(last);
	if (chunk->context == NULL || chunk->payload_bytes + size > CHUNK_BYTES)
		return last;
	logged->payload = MemoryContextAlloc(chunk->context, size);
	memcpy(logged->payload, last, size);
	chunk->payload_bytes += size;
	chunk->bytes += size;
	if (chunk->cached)
		cached_bytes += size;
	return logged->payload;
}

OutboxChunk *
outbox_chunk_pin(OutboxChunk *chunk)
{
	chunk->pins++;
	return chunk;
}

void
outbox_chunk_unpin(OutboxChunk *chunk)
{
	Assert(chunk->pins > 0);
	if (--chunk->pins == 0)
		free_chunk(chunk);
}

OutboxChunk *
outbox_chunk_find(const OutboxPosition *position, bool settled, bool bodies)
{
	OutboxPosition begin = beginning(position);
	Place		place = place_of(&begin);
	PlaceEntry *entry = places == NULL ? NULL : hash_search(places, &place, HASH_FIND, NULL);

	if (entry == NULL || (settled && !entry->chunk->settled_known) || (bodies && !entry->chunk->bodies))
		return NULL;
	/* of another window: that may have events before this position which this window has not */
	if (position->inside && entry->chunk->to.upper != position->upper)
		return NULL;
	dlist_move_head(&cache, &entry->chunk->node);
	return outbox_chunk_pin(entry->chunk);
}

/* ---- reading ---- */

static void
uuid_text(const pg_uuid_t *id, char *out)
{
	static const char hex[] = "0123456789abcdef";

	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*out++ = '-';
		*out++ = hex[id->data[i] >> 4];
		*out++ = hex[id->data[i] & 15];
	}
	*out = '\0';
}

static char *
to_utf8(OutboxLoggedEvent *logged, char *text)
{
	size_t		size;

	if (text == NULL)
		return NULL;
	size = strlen(text);
	return outbox_utf8(text, &size, &logged->utf8);
}

/* The producer's headers, an object of strings, as an array. */
static void
unpack_headers(OutboxLoggedEvent *logged)
{
	Jsonb	   *headers = logged->event.headers;
	JsonbIterator *it;
	JsonbValue	value;
	JsonbIteratorToken token;

	if (headers == NULL || JB_ROOT_COUNT(headers) == 0)
		return;
	logged->headers = palloc(JB_ROOT_COUNT(headers) * sizeof(OutboxHeader));
	it = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			logged->headers[logged->n_headers].name = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE && value.type == jbvString)
			logged->headers[logged->n_headers++].value = to_utf8(logged, pnstrdup(value.val.string.val, value.val.string.len));
	}
}

static void
work_out(OutboxLoggedEvent *logged)
{
	uuid_text(&logged->event.id, logged->id_text);
	if (logged->event.key != NULL)
		logged->key_hash = hash_bytes_extended((unsigned char *) logged->event.key, strlen(logged->event.key), 0);
	logged->for_all = logged->event.unreadable || strcmp(logged->event.type, OUTBOX_PING_TYPE) == 0;
	if (logged->event.type != NULL)
		logged->type_hash = outbox_chunk_hash(logged->event.type);
	if (logged->event.tenant != NULL)
		logged->tenant_hash = outbox_chunk_hash(logged->event.tenant);
	logged->utf8 = true;
	logged->type = to_utf8(logged, logged->event.type);
	logged->key = to_utf8(logged, logged->event.key);
	logged->content_type = to_utf8(logged, logged->event.content_type);
	logged->body = logged->event.body;
	logged->body_size = logged->event.body_size;
	if (logged->event.json && logged->body != NULL)
		logged->body = outbox_utf8(logged->body, &logged->body_size, &logged->utf8);
	unpack_headers(logged);
}

static void
digest(OutboxChunk *chunk, const OutboxLoggedEvent *logged)
{
	chunk->for_all |= logged->for_all;
	outbox_digest_add(&chunk->types, logged->type_hash);
	outbox_digest_add(&chunk->tenants, logged->tenant_hash);
}

static OutboxChunk *
make_chunk(int room)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "outbox chunk", ALLOCSET_SMALL_SIZES);
	OutboxChunk *chunk = MemoryContextAllocZero(context, sizeof(OutboxChunk));

	chunk->context = context;
	chunk->pins = 1;
	chunk->room = room;
	chunk->events = MemoryContextAlloc(context, room * sizeof(OutboxLoggedEvent));
	return chunk;
}

/* Room for one more event, zeroed. */
static OutboxLoggedEvent *
next_event(OutboxChunk *chunk)
{
	OutboxLoggedEvent *logged;

	if (chunk->n == chunk->room)
	{
		chunk->room *= 4;
		chunk->events = repalloc(chunk->events, chunk->room * sizeof(OutboxLoggedEvent));
	}
	logged = &chunk->events[chunk->n];
	memset(logged, 0, sizeof(*logged));
	return logged;
}

/* From here on nothing raises: the chunk outlives the turn. */
static void
keep_chunk(OutboxChunk *chunk)
{
	MemoryContextSetParent(chunk->context, TopMemoryContext);
	chunk->bytes = MemoryContextMemAllocated(chunk->context, true);
}

OutboxChunk *
outbox_chunk_read(OutboxLog *log, int64 epoch, const OutboxPosition *position, OutboxTick *upper, bool careful,
				  bool settled, bool bodies)
{
	OutboxChunk *chunk = make_chunk(8);
	MemoryContext old = MemoryContextSwitchTo(chunk->context);
	OutboxPosition from = beginning(position);
	OutboxPosition to = from;
	OutboxScan *scan;
	Size		bytes = 0;
	bool		more = true;

	if (position->partial)
		upper = position->upper;

	scan = outbox_log_scan(log, from.restored != 0 ? from.restored : epoch, from.base->snapshot, upper->snapshot,
						   from.partial ? &from.after : NULL,
						   from.partial && from.hinted ? &from.new_from : NULL, bodies, careful);
	chunk->bodies = bodies || careful;
	while (chunk->n < CHUNK_EVENTS && bytes < CHUNK_BYTES)
	{
		OutboxLoggedEvent *logged = next_event(chunk);

		more = outbox_log_next(scan, &logged->event);
		if (!more)
			break;
		work_out(logged);
		digest(chunk, logged);
		bytes += logged->event.body_size;
		chunk->n++;
	}
	to.hinted = more;
	outbox_log_new_from(scan, &to.new_from);
	outbox_log_end(scan);
	OUTBOX_FAULT("read-after-chunk");

	if (settled)
		chunk->n_settled = outbox_ledger_settled(chunk->events, chunk->n, &chunk->settled);
	chunk->settled_known = settled;
	MemoryContextSwitchTo(old);

	to.upper = upper;
	if (more)
	{
		to.partial = true;
		to.after = chunk->events[chunk->n - 1].event.log_id;
	}
	else
	{
		to.base = upper;
		to.partial = false;
	}
	keep_chunk(chunk);
	outbox_position_set(&chunk->from, &from);
	outbox_position_set(&chunk->to, &to);
	cache_chunk(chunk);
	return chunk;
}

OutboxChunk *
outbox_chunk_fetch(OutboxLog *log, const pg_uuid_t *log_ids, int *n)
{
	OutboxChunk *chunk = make_chunk(8);
	MemoryContext old = MemoryContextSwitchTo(chunk->context);
	Size		bytes = 0;
	int			done = 0;

	for (; done < *n && bytes < CHUNK_BYTES; done++)
	{
		OutboxLoggedEvent *logged = next_event(chunk);

		if (!outbox_log_find(log, &log_ids[done], &logged->event))
			continue;
		work_out(logged);
		bytes += logged->event.body_size;
		chunk->n++;
	}
	*n = done;
	chunk->bodies = true;
	MemoryContextSwitchTo(old);
	keep_chunk(chunk);
	return chunk;
}

bool
outbox_chunk_is_settled(const OutboxChunk *chunk, int32 subscription, const pg_uuid_t *event_id)
{
	for (int i = 0; i < chunk->n_settled; i++)
	{
		if (chunk->settled[i].subscription == subscription &&
			memcmp(&chunk->settled[i].event_id, event_id, sizeof(pg_uuid_t)) == 0)
			return true;
	}
	return false;
}
