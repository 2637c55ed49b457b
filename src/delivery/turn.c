/*
 * One turn of the loop.
 *
 * Every step that touches tables is one short transaction that begins by locking the extension, conditionally; no transaction is open while
 * something is sent.  Steps keep their state in memory, and change it only after their transaction has committed, so a step that raises is
 * simply done again later.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "dispatch.h"
#include "event_id.h"
#include "event_log.h"
#include "http.h"
#include "ledger.h"
#include "ring.h"
#include "settings.h"
#include "subscription.h"
#include "tick.h"
#include "turn.h"

#define POLL_MS 1000			/* tick anyway: COMMIT PREPARED by an apply worker rings no bell */
#define RECORD_MS 25			/* outcomes wait at most this long … */
#define RECORD_NOTES 1000		/* … or until there are so many */
#define CHECKPOINT_MS 1000		/* cursors: guarantee 4 */
#define CHECKPOINT_EVENTS 10000
#define PAUSE_MS 1000			/* after an error */
#define CONFIRM_MS 5			/* look again whether the standbys have confirmed */
#define FETCH_AT_ONCE 256
#define SEND_AT_ONCE 256		/* requests started before the loop looks at the network again */
#define READ_BUDGET_US 20000	/* of one reading transaction */
#define NETWORK_BUDGET_US 20000
#define CAREFUL_READS 100		/* after an error while reading: row by row, so that a bad one is found */

typedef struct OutboxRequest
{
	OutboxItem *item;
	OutboxExchange *exchange;
	OutboxChunk *chunk;			/* pinned: the body is in it */
} OutboxRequest;

static OutboxDatabase *database;
static Oid	extension;
static Oid	schema;
static int64 epoch;
static MemoryContext turn_context;
static OutboxHttp *http;
static char *source;			/* CloudEvents source */

static OutboxPosition head;
static uint64 head_offset;		/* events up to the head */
static OutboxTick *newest;		/* durable; the upper end for lanes that read for themselves */
static OutboxChunk *unconfirmed;	/* the head's next chunk, waiting for standbys */
static uint64 start_clock;		/* events older than this worker may have delivery rows already */

static bool over = false;		/* this database is not ours any more … */
static bool gone = false;		/* … because the extension is gone */
static bool starving = false;	/* lanes could read more at once */
static bool want_tick = true;
static bool want_reload = false;
static bool want_resync = false;
static bool reading = false;	/* an error now comes from reading the log */
static int	careful = 0;
static bool full_state = true;	/* the next checkpoint writes every cursor */
static bool moved = false;		/* cursors may have, since the last checkpoint */
static int	done = 0;			/* items, since the last checkpoint */
static TimestampTz secrets_until;
static uint64 written_head;		/* base tick of the newest committed head row */

static TimestampTz ticked_at;
static TimestampTz noted_at;	/* when the oldest unwritten note was seen; 0: none */
static TimestampTz checkpoint_at;
static TimestampTz maintained_at;
static TimestampTz paused_until;
static TimestampTz next_due;

/* ---- transactions ---- */

static void
commit(void)
{
	CommitTransactionCommand();
	MemoryContextSwitchTo(turn_context);
	pgstat_report_stat(false);
}

/* Opens a transaction on an extension that is there and stays there; false: not now (or over). */
static bool
begin(const char *activity)
{
	const OutboxCatalog *catalog;

	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, activity);
	StartTransactionCommand();
	if (ConditionalLockDatabaseObject(ExtensionRelationId, extension, 0, AccessShareLock))
	{
		catalog = outbox_catalog();
		if (catalog != NULL && catalog->extension == extension)
		{
			schema = catalog->schema;
			return true;
		}
		over = gone = true;
	}
	commit();
	return false;
}

static void
pause_tables(TimestampTz now, int ms)
{
	paused_until = TimestampTzPlusMilliseconds(now, ms);
}

/* ---- configuration ---- */

static bool
is_armed(void)
{
	static const char query[] =
		"SELECT 1 FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) c"
		" WHERE s.setdatabase = $1 AND s.setrole = 0 AND c = 'outbox.armed=' || $2";
	Oid			types[] = {OIDOID, TEXTOID};
	char		text[32];
	Datum		values[2];

	snprintf(text, sizeof(text), INT64_FORMAT, epoch);
	values[0] = ObjectIdGetDatum(MyDatabaseId);
	values[1] = CStringGetTextDatum(text);
	if (SPI_execute_with_args(query, 2, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed: %s", query);
	return SPI_processed == 1;
}

/* A rough count of the events in the log, for people: pages are cheap to count, rows are not. */
static uint64
estimate_events(void)
{
	const uint64 events_per_page = 25;
	const OutboxCatalog *catalog = outbox_catalog();
	uint64		pages = 0;

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		Relation	segment;

		if (!ConditionalLockRelationOid(catalog->segments[i], AccessShareLock))
			continue;
		segment = RelationIdGetRelation(catalog->segments[i]);
		pages += RelationGetNumberOfBlocks(segment);
		RelationClose(segment);
		UnlockRelationOid(catalog->segments[i], AccessShareLock);
	}
	return pages * events_per_page;
}

/* Where a subscription without a cursor begins. */
static void
place_at_start(OutboxLane *lane)
{
	OutboxSubscription *subscription = lane->subscription;
	OutboxPosition start = {.base = outbox_tick_nothing(), .upper = outbox_tick_nothing()};
	OutboxTick *own = NULL;

	lane->not_before = pg_atomic_read_u64(&database->tick);
	lane->offset = head_offset;
	if (subscription->started_here && subscription->start != NULL)
	{
		own = outbox_tick_restore(0, subscription->start, head_offset, GetCurrentTimestamp());
		start.base = start.upper = own;
	}
	else
		lane->offset -= Min(lane->offset, estimate_events());
	if (subscription->started_here && subscription->has_start_after)
	{
		start.partial = true;
		start.upper = newest;
		start.after = subscription->start_after;
	}
	outbox_position_set(&lane->position, &start);
	if (own != NULL)
		outbox_tick_unpin(own);
}

/* Takes over the tables' configuration: changes take effect at once, for every request not yet started. */
static List *
load_subscriptions(void)
{
	List	   *subscriptions = outbox_subscription_load(epoch);
	List	   *added = NIL;
	ListCell   *cell;

	secrets_until = DT_NOEND;
	foreach(cell, subscriptions)
		secrets_until = Min(secrets_until, ((OutboxSubscription *) lfirst(cell))->secrets_until);
	outbox_dispatch_configure(subscriptions, &added);
	want_reload = false;
	return added;
}

static void
reload(void)
{
	ListCell   *cell;

	if (!begin("loading subscriptions"))
		return;
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!is_armed())
		over = true;
	else
	{
		foreach(cell, load_subscriptions())
			place_at_start(lfirst(cell));
		moved = want_tick = true;
	}
	PopActiveSnapshot();
	SPI_finish();
	commit();
}

/* ---- start ---- */

static void
restore_cursor(OutboxLane *lane, const OutboxCursor *cursor)
{
	OutboxPosition position = {.partial = cursor->partial, .after = cursor->after};

	lane->offset = cursor->offset;
	if (cursor->at_head)
	{
		outbox_lane_attach(lane);
		return;
	}
	place_at_start(lane);
	lane->offset = cursor->offset;
	position.base = cursor->base == 0 ? outbox_tick_pin(lane->position.base) : outbox_ledger_load_tick(epoch, cursor->base);
	position.upper = cursor->upper == 0 ? outbox_tick_pin(position.base)
		: cursor->upper == cursor->base ? outbox_tick_pin(position.base)
		: outbox_ledger_load_tick(epoch, cursor->upper);
	outbox_position_set(&lane->position, &position);
	outbox_tick_unpin(position.base);
	outbox_tick_unpin(position.upper);
}

static void
restore_head(const OutboxCursor *cursor)
{
	OutboxPosition position = {.partial = cursor->partial, .after = cursor->after};

	position.base = outbox_ledger_load_tick(epoch, cursor->base);
	position.upper = cursor->upper == cursor->base ? outbox_tick_pin(position.base)
		: outbox_ledger_load_tick(epoch, cursor->upper);
	outbox_position_set(&head, &position);
	outbox_tick_unpin(position.base);
	outbox_tick_unpin(position.upper);
	head_offset = cursor->offset;
	outbox_lane_head_at(head_offset);
	written_head = cursor->base;
}

/* Tick numbers only grow, also over a restart of the server. */
static void
continue_numbers(void)
{
	uint64		last = outbox_ledger_last_tick(epoch);
	uint64		current = pg_atomic_read_u64(&database->tick);

	while (current < last && !pg_atomic_compare_exchange_u64(&database->tick, &current, last))
		;
}

static void
restore_positions(void)
{
	int			n;
	OutboxCursor *cursors = outbox_ledger_load_cursors(epoch, &n);
	List	   *lanes;
	ListCell   *cell;

	/* Without a head row nobody is at the head: it may as well begin here. */
	if (n > 0 && cursors[0].subscription == 0)
		restore_head(&cursors[0]);
	else
	{
		OutboxPosition here = {.base = newest, .upper = newest};

		outbox_position_set(&head, &here);
	}
	lanes = load_subscriptions();
	foreach(cell, lanes)
	{
		OutboxLane *lane = lfirst(cell);
		OutboxCursor *cursor = NULL;

		for (int i = 0; i < n && cursor == NULL; i++)
		{
			if (cursors[i].subscription == lane->subscription->id)
				cursor = &cursors[i];
		}
		if (cursor != NULL)
			restore_cursor(lane, cursor);
		else
			place_at_start(lane);
	}
}

static void
resync(void)
{
	int			n;
	OutboxException *exceptions = outbox_ledger_load_exceptions(&n);

	outbox_dispatch_exceptions(exceptions, n);
	want_resync = false;
}

static char *
make_source(void)
{
	StringInfoData urn;
	const char *name = get_database_name(MyDatabaseId);

	initStringInfo(&urn);
	appendStringInfoString(&urn, "urn:outbox:");
	for (const unsigned char *c = (const unsigned char *) name; *c != '\0'; c++)
	{
		if (isalnum(*c) || strchr("-._~", *c) != NULL)
			appendStringInfoChar(&urn, *c);
		else
			appendStringInfo(&urn, "%%%02X", *c);
	}
	return MemoryContextStrdup(TopMemoryContext, urn.data);
}

void
outbox_turn_start(OutboxDatabase *of)
{
	OutboxHttpOptions options = {.max_connections = outbox_max_in_flight, .user_agent = "outbox/" OUTBOX_VERSION};
	const OutboxCatalog *catalog;

	database = of;
	turn_context = AllocSetContextCreate(TopMemoryContext, "outbox turn", ALLOCSET_DEFAULT_SIZES);
	outbox_dispatch_init(database);

	StartTransactionCommand();
	catalog = outbox_catalog();
	if (catalog == NULL)
	{
		over = gone = true;
		CommitTransactionCommand();
		return;
	}
	extension = catalog->extension;
	epoch = catalog->epoch;
	source = make_source();
	outbox_log_floor(database);
	start_clock = pg_atomic_read_u64(&database->clock);

	/* A tick to begin with: what lanes read for themselves ends there. */
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	continue_numbers();
	PopActiveSnapshot();
	newest = outbox_tick_take(database);
	over = !is_armed();
	if (!over)
	{
		restore_positions();
		resync();
	}
	PopActiveSnapshot();
	SPI_finish();
	CommitTransactionCommand();
	outbox_tick_flush(newest);

	http = outbox_http_create(&options);
	if (http == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not set up the HTTP client")));
}

int
outbox_turn_descriptor(void)
{
	return outbox_http_descriptor(http);
}

bool
outbox_turn_over(void)
{
	return over;
}

/* ---- tick and read ---- */

static bool
same_position(const OutboxPosition *a, const OutboxPosition *b)
{
	if (a->base != b->base || a->partial != b->partial)
		return false;
	return !a->partial || (a->upper == b->upper && memcmp(&a->after, &b->after, sizeof(pg_uuid_t)) == 0);
}

static void
set_newest(OutboxTick *tick)
{
	OutboxTick *old = newest;

	if (tick->number <= old->number)
		return;
	newest = outbox_tick_pin(tick);
	outbox_tick_unpin(old);
}

/* The head moves over a chunk that may be sent. */
static void
advance_head(OutboxChunk *chunk)
{
	outbox_dispatch_route(chunk, head_offset);
	head_offset += chunk->n;
	outbox_position_set(&head, &chunk->to);
	if (!head.partial)
		head.base->offset = head_offset;
	if (chunk->n > 0)
		moved = true;
	set_newest(head.upper);
	outbox_chunk_unpin(chunk);
}

/* Is some event of the chunk older than this worker? */
static bool
may_be_settled(const OutboxPosition *position)
{
	if (position->partial && outbox_event_id_clock(&position->after) > start_clock)
		return false;
	return position->base->snapshot == NULL || position->base->snapshot->clock <= start_clock;
}

/* Lanes that are behind read from cached chunks as far as those go. */
static void
feed_from_cache(OutboxLane *lane)
{
	while (!lane->at_head && outbox_lane_has_room(lane))
	{
		OutboxChunk *chunk;

		if (same_position(&lane->position, &head))
		{
			outbox_lane_attach(lane);
			return;
		}
		chunk = outbox_chunk_find(&lane->position, lane->need_settled);
		if (chunk == NULL || !outbox_tick_durable(chunk->to.upper))
		{
			if (chunk != NULL)
				outbox_chunk_unpin(chunk);
			return;
		}
		outbox_dispatch_fill(lane, chunk);
		outbox_chunk_unpin(chunk);
		moved = true;
	}
}

/*
 * A window must end after it begins: a tick sees what every lower number saw.  A subscription's own start has no number; the first tick taken
 * after the worker learned of it sees what that snapshot saw.
 */
static bool
needs_reading(const OutboxLane *lane)
{
	const OutboxPosition *position = &lane->position;

	if (lane->at_head || !outbox_lane_has_room(lane))
		return false;
	if (position->partial)
		return true;
	return newest->number > (position->base->number == 0 ? lane->not_before : position->base->number);
}

/* Reads for lanes that are behind, until the budget is used up. Those who are at the same place share. */
static void
feed(List *hungry, OutboxLog *log, TimestampTz begin_at)
{
	ListCell   *cell;

	foreach(cell, hungry)
	{
		OutboxLane *lane = lfirst(cell);

		feed_from_cache(lane);
		while (needs_reading(lane))
		{
			OutboxChunk *chunk;

			CHECK_FOR_INTERRUPTS();
			if (GetCurrentTimestamp() - begin_at > READ_BUDGET_US)
			{
				starving = true;
				return;
			}
			chunk = outbox_chunk_read(log, epoch, &lane->position, newest, careful > 0, true);
			outbox_chunk_unpin(chunk);
			feed_from_cache(lane);
		}
	}
}

static void
fetch(OutboxLog *log)
{
	OutboxItem *items[FETCH_AT_ONCE];
	pg_uuid_t	ids[FETCH_AT_ONCE];
	int			n = outbox_dispatch_to_fetch(items, FETCH_AT_ONCE);
	OutboxChunk *chunk;

	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
		ids[i] = items[i]->id;
	chunk = outbox_chunk_fetch(log, ids, n);
	outbox_dispatch_fetched(items, n, chunk);
	outbox_chunk_unpin(chunk);
}

/* The head's next chunk: of the window it is in, or of a new one that a new tick closes. NULL: not now. */
static OutboxChunk *
read_head(bool tick_now, bool read_on)
{
	OutboxTick *tick;
	OutboxLog  *log;
	OutboxChunk *chunk;

	if (!tick_now && !read_on)
		return NULL;
	tick = tick_now ? outbox_tick_take(database) : outbox_tick_pin(head.upper);
	if (!tick_now)
		PushActiveSnapshot(GetTransactionSnapshot());
	log = outbox_log_open(!tick_now, head.base->number + 1);
	if (log == NULL)
		chunk = NULL;
	else
	{
		chunk = outbox_chunk_read(log, epoch, &head, tick, careful > 0, may_be_settled(&head));
		outbox_log_close(log);
	}
	PopActiveSnapshot();
	outbox_tick_unpin(tick);
	return chunk;
}

/* Everything that reads the log, in one transaction. */
static void
read_log(List *hungry, bool tick_now, bool read_on, TimestampTz now)
{
	OutboxChunk *chunk;

	if (!begin("reading events"))
	{
		pause_tables(now, PAUSE_MS / 10);
		return;
	}
	reading = true;
	chunk = read_head(tick_now, read_on);
	if (hungry != NIL || outbox_dispatch_fetching())
	{
		OutboxLog  *log;

		PushActiveSnapshot(GetTransactionSnapshot());
		log = outbox_log_open(true, 0);
		if (log != NULL)
		{
			feed(hungry, log, now);
			fetch(log);
			outbox_log_close(log);
		}
		else
			pause_tables(now, PAUSE_MS / 10);
		PopActiveSnapshot();
	}
	reading = false;
	commit();

	if (tick_now)
		ticked_at = now;
	if (chunk != NULL)
	{
		want_tick = want_tick && !tick_now;
		unconfirmed = chunk;
	}
	else if (tick_now || read_on)
		pause_tables(now, PAUSE_MS / 10);
	if (careful > 0)
		careful--;
}

/* The head's chunk may go on once nothing can undo what its tick saw. */
static void
confirm_head(void)
{
	OutboxTick *tick;

	if (unconfirmed == NULL)
		return;
	tick = unconfirmed->to.upper;

	/* A tick that saw no event that the one before did not see is as durable as that one. */
	if (unconfirmed->n == 0 && head.base->durable)
		tick->durable = true;
	else
		outbox_tick_flush(tick);
	if (outbox_tick_durable(tick))
	{
		OutboxChunk *chunk = unconfirmed;

		unconfirmed = NULL;
		advance_head(chunk);
	}
}

static void
read_step(TimestampTz now)
{
	List	   *hungry = NIL;
	ListCell   *cell;
	bool		tick_now = want_tick && !head.partial && unconfirmed == NULL;
	bool		read_on = head.partial && unconfirmed == NULL && outbox_lane_head_may_read(now);

	starving = false;
	foreach(cell, outbox_lane_hungry())
	{
		OutboxLane *lane = lfirst(cell);

		feed_from_cache(lane);
		if (needs_reading(lane) && (!lane->need_settled || outbox_ledger_pending() == 0))
			hungry = lappend(hungry, lane);
	}
	if (now < paused_until || !(tick_now || read_on || hungry != NIL || outbox_dispatch_fetching()))
		return;
	read_log(hungry, tick_now, read_on, now);
	confirm_head();
}

/* ---- send and judge ---- */

static void
end_request(OutboxRequest *request)
{
	OutboxExchange *exchange = request->exchange;

	if (exchange->outcome == OUTBOX_DELIVERED)
		database->status.delivered++;
	else
		database->status.failed++;
	outbox_dispatch_finished(request->item, exchange, GetCurrentTimestamp());
	moved = true;
	if (noted_at == 0 && outbox_ledger_pending() > 0)
		noted_at = GetCurrentTimestamp();
	if (exchange->headers != NULL)
		outbox_message_headers_free(exchange->headers);
	outbox_exchange_free(exchange);
	outbox_chunk_unpin(request->chunk);
	pfree(request);
}

/* An attempt that never got to the network. */
static void
end_unsent(OutboxRequest *request, OutboxOutcome outcome, const char *why)
{
	request->exchange->outcome = outcome;
	request->exchange->retry_after = -1;
	strlcpy(request->exchange->error, why, sizeof(request->exchange->error));
	end_request(request);
}

static void
fill_message(OutboxMessage *message, const OutboxLoggedEvent *logged)
{
	const int64 to_unix = (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;

	memcpy(message->id, logged->id_text, OUTBOX_ID_TEXT);
	message->source = outbox_source[0] != '\0' ? outbox_source : source;
	message->type = logged->event.type;
	message->key = logged->event.key;
	message->created_at = logged->event.created_at + to_unix;
	message->content_type = logged->event.content_type;
	message->traceparent = logged->event.traceparent;
	message->headers = logged->headers;
	message->n_headers = logged->n_headers;
	message->body = logged->event.body;
	message->size = logged->event.body_size;
}

static void
send_item(OutboxItem *item)
{
	OutboxRequest *request = MemoryContextAllocZero(TopMemoryContext, sizeof(OutboxRequest));
	OutboxExchange *exchange = outbox_exchange_create();
	OutboxMessage message = {0};
	uint64		span = pg_prng_uint64(&pg_global_prng_state);
	const char *error = NULL;

	if (exchange == NULL)
		ereport(FATAL,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	request->item = item;
	request->exchange = exchange;
	request->chunk = outbox_chunk_pin(item->chunk);
	exchange->endpoint = &item->subscription->endpoint;
	exchange->owner = request;
	if (item->logged->event.unreadable)
	{
		end_unsent(request, OUTBOX_INTERNAL, "the event cannot be read");
		return;
	}
	fill_message(&message, item->logged);
	exchange->body = message.body;
	exchange->size = message.size;
	exchange->headers = outbox_message_headers(&message, item->subscription->signers, item->subscription->n_signers,
											   (int64) time(NULL), (unsigned char *) &span, &error);
	if (exchange->headers == NULL)
		end_unsent(request, OUTBOX_BAD_REQUEST, error);
	else
		outbox_http_start(http, exchange);
}

/* Network events, outcomes, and new requests in the places that became free. True: nothing happened. */
static bool
send_step(TimestampTz now)
{
	OutboxExchange *exchange;
	OutboxItem *item;
	int			started = 0;
	int			ended = 0;

	outbox_http_work(http, NETWORK_BUDGET_US);
	while ((exchange = outbox_http_finished(http)) != NULL)
	{
		end_request(exchange->owner);
		ended++;
	}
	next_due = outbox_item_due(now);
	while (started < SEND_AT_ONCE && (item = outbox_dispatch_next(outbox_max_in_flight, now)) != NULL)
	{
		send_item(item);
		started++;
	}
	return started == 0 && ended == 0;
}

/* ---- record ---- */

static bool
lane_moved(OutboxLane *lane, OutboxPosition *position, bool *at_head)
{
	*at_head = !outbox_lane_cursor(lane, position);
	if (full_state)
		return true;
	if (*at_head)
		return !lane->marked;
	return lane->marked || lane->written.base == NULL || !same_position(position, &lane->written);
}

static void
write_cursors(void)
{
	ListCell   *cell;

	outbox_ledger_cursor(epoch, 0, false, &head, head_offset);
	foreach(cell, outbox_lane_all())
	{
		OutboxLane *lane = lfirst(cell);
		OutboxPosition position = {0};
		bool		at_head;

		if (!lane_moved(lane, &position, &at_head))
			continue;
		outbox_ledger_cursor(epoch, lane->subscription->id, at_head, at_head ? NULL : &position,
							 outbox_lane_offset(lane));
		lane->marked = at_head;
		if (at_head)
			outbox_position_clear(&lane->written);
		else
			outbox_position_set(&lane->written, &position);
	}
}

/* Earlier matching rules are history once a lane's base has seen all that they apply to. */
static void
drop_history(void)
{
	ListCell   *cell;

	foreach(cell, outbox_lane_all())
	{
		OutboxLane *lane = lfirst(cell);
		OutboxPosition position;

		if (lane->subscription->n_earlier == 0)
			continue;
		if (!outbox_lane_cursor(lane, &position))
			position = head;
		if (position.base->snapshot != NULL)
			outbox_ledger_drop_matches(lane->subscription->id, position.base->snapshot);
	}
}

/* Writes what was noted, and with a checkpoint the cursors that it allows, in one transaction. */
static void
record(bool checkpoint, TimestampTz now)
{
	volatile bool written = false;

	if (!begin(checkpoint ? "recording outcomes and cursors" : "recording outcomes"))
	{
		pause_tables(now, PAUSE_MS / 10);
		return;
	}
	PG_TRY();
	{
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		outbox_ledger_write(outbox_catalog());
		if (checkpoint)
		{
			if (outbox_ledger_turn())
				full_state = true;
			write_cursors();
			drop_history();
			ForceSyncCommit();
		}
		if (want_resync)
			resync();
		PopActiveSnapshot();
		SPI_finish();
		CommitTransactionCommand();
		MemoryContextSwitchTo(turn_context);
		written = true;
	}
	PG_FINALLY();
	{
		if (!written)
		{
			outbox_ledger_failed();
			full_state = true;
		}
	}
	PG_END_TRY();

	outbox_ledger_committed();
	pgstat_report_stat(false);
	noted_at = outbox_ledger_pending() > 0 ? now : 0;
	if (checkpoint)
	{
		full_state = false;
		moved = false;
		done = 0;
		checkpoint_at = now;
		written_head = head.base->number;
	}
}

/* A sealed segment waits for a committed head behind its seal. */
static bool
seal_waits(void)
{
	bool		waits = false;

	LWLockAcquire(&database->lock, LW_SHARED);
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		OutboxSegmentState *segment = &database->segments[i];

		if (segment->sealed && segment->seal_tick > written_head && segment->seal_tick <= head.base->number)
			waits = true;
	}
	LWLockRelease(&database->lock);
	return waits;
}

static bool
checkpoint_due(TimestampTz now)
{
	done += outbox_item_done();
	if (!moved && !full_state)
		return false;
	return full_state || done >= CHECKPOINT_EVENTS || TimestampDifferenceExceeds(checkpoint_at, now, CHECKPOINT_MS);
}

static void
record_step(TimestampTz now)
{
	bool		checkpoint = checkpoint_due(now);

	if (now < paused_until)
		return;
	if (checkpoint)
	{
		outbox_dispatch_pass_overtaken(now);
		outbox_dispatch_publish();
	}
	if (checkpoint || want_resync || outbox_ledger_pending() >= RECORD_NOTES ||
		(noted_at != 0 && TimestampDifferenceExceeds(noted_at, now, RECORD_MS)))
		record(checkpoint, now);
}

/* ---- maintenance ---- */

static void
maintain_step(TimestampTz now)
{
	if (now < paused_until || !TimestampDifferenceExceeds(maintained_at, now, outbox_maintenance_interval * 1000))
		return;
	maintained_at = now;
	if (outbox_auto_maintain && begin("maintaining the event log"))
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		(void) outbox_ring_maintain();
		PopActiveSnapshot();
		commit();
	}
	if (outbox_ledger_has_old() && begin("emptying old cursors"))
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		outbox_ledger_empty_old(outbox_catalog());
		PopActiveSnapshot();
		commit();
	}
	if (seal_waits())
		moved = true;
}

/* ---- the turn ---- */

static void
publish(TimestampTz now)
{
	OutboxWorkerStatus *status = &database->status;

	status->turn_at = now;
	status->tick_at = ticked_at;
	status->tick = head.base->number;
	status->offset = head_offset;
	status->in_flight = outbox_dispatch_in_flight();
}

static void
sooner(long *wait, TimestampTz now, TimestampTz at)
{
	long		ms = at <= now ? 0 : TimestampDifferenceMilliseconds(now, at);

	if (*wait < 0 || ms < *wait)
		*wait = ms;
}

static long
time_to_wait(TimestampTz now)
{
	long		wait = outbox_http_timeout(http);

	sooner(&wait, now, TimestampTzPlusMilliseconds(ticked_at, POLL_MS));
	if (next_due != 0)
		sooner(&wait, now, next_due);
	if (noted_at != 0)
		sooner(&wait, now, Max(paused_until, TimestampTzPlusMilliseconds(noted_at, RECORD_MS)));
	if (moved)
		sooner(&wait, now, Max(paused_until, TimestampTzPlusMilliseconds(checkpoint_at, CHECKPOINT_MS)));
	if (unconfirmed != NULL)
		sooner(&wait, now, TimestampTzPlusMilliseconds(now, CONFIRM_MS));
	if (unconfirmed == NULL && (want_tick || head.partial || starving || outbox_dispatch_fetching()))
		sooner(&wait, now, Max(paused_until, head.partial && !outbox_lane_head_may_read(now)
							   ? TimestampTzPlusMilliseconds(now, CONFIRM_MS) : now));
	return wait;
}

long
outbox_turn_run(uint32 reasons)
{
	TimestampTz now = GetCurrentTimestamp();
	MemoryContext old = MemoryContextSwitchTo(turn_context);
	bool		idle;

	if ((reasons & OUTBOX_RING_EVENTS) || TimestampDifferenceExceeds(ticked_at, now, POLL_MS))
		want_tick = true;
	if ((reasons & OUTBOX_RING_SUBSCRIPTIONS) || secrets_until <= now)
		want_reload = true;
	if (reasons & OUTBOX_RING_DELIVERIES)
		want_resync = true;

	if (want_reload && now >= paused_until)
		reload();
	confirm_head();
	if (!over)
		read_step(now);
	idle = send_step(now);
	if (!over)
		record_step(GetCurrentTimestamp());
	if (!over)
		maintain_step(now);

	now = GetCurrentTimestamp();
	publish(now);
	MemoryContextSwitchTo(old);
	MemoryContextReset(turn_context);
	return idle && !over ? time_to_wait(now) : 0;
}

void
outbox_turn_failed(void)
{
	MemoryContextReset(turn_context);
	pause_tables(GetCurrentTimestamp(), PAUSE_MS);
	if (reading)
		careful = CAREFUL_READS;
	reading = false;
	want_tick = true;
}

void
outbox_turn_finish(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (gone || head.base == NULL)
		return;
	outbox_dispatch_pass_overtaken(now);
	record(true, now);
}
