/*
 * Where everybody stands after a start, and after a change.
 *
 * A subscription goes on from its newest cursor; without one, from where it started.  One that came with a restored dump first goes through what it had
 * not delivered of the restored events (unless start(skip_backlog => true) said otherwise): its cursor and the transaction ids of those events
 * belong to the epoch they were dumped from and still fit together, so the same arithmetic tells what is left.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "backlog.h"
#include "cursors.h"
#include "dispatch.h"
#include "event_id.h"
#include "event_log.h"
#include "fault.h"
#include "ledger.h"
#include "replay.h"
#include "restore.h"
#include "subscription.h"
#include "work.h"

static OutboxWork *const work = &outbox_work;
static TimestampTz secrets_until;

#define UNREADABLE_RETRY_MS 10000	/* secrets that cannot be read are tried again, also without a reload of the configuration */

static bool
is_armed(void)
{
	static const char query[] =
		"SELECT 1 FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) c"
		" WHERE s.setdatabase = $1 AND s.setrole = 0 AND c = 'outbox.armed=' || $2";
	Oid			types[] = {OIDOID, TEXTOID};
	char		text[32];
	Datum		values[2];

	snprintf(text, sizeof(text), INT64_FORMAT, work->epoch);
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
		if (segment != NULL)
		{
			pages += RelationGetNumberOfBlocks(segment);
			RelationClose(segment);
		}
		UnlockRelationOid(catalog->segments[i], AccessShareLock);
	}
	return pages * events_per_page;
}

/* The tick that a subscription starts from, in the epoch it was made in; pinned once. */
static OutboxTick *
start_tick(const OutboxSubscription *subscription, int64 epoch)
{
	if (subscription->start_epoch != epoch || subscription->start == NULL)
		return outbox_tick_pin(outbox_tick_nothing());
	return outbox_tick_restore(0, subscription->start, work->head_offset, GetCurrentTimestamp());
}

/*
 * Starts that are near each other are shared, so that those who begin there read together: the earliest of them is the base, and each lane leaves out what its own start saw.  A lane so
 * goes through at most half as much again as it would have to, or a second.
 */
static OutboxTick *shared_start = NULL; /* while lanes are placed: the last one */

static bool
is_near(const OutboxSnapshot *shared, const OutboxSnapshot *own)
{
	uint64		second = outbox_event_id_clock_at(USECS_PER_SEC) - outbox_event_id_clock_at(0);
	uint64		now = pg_atomic_read_u64(&work->database->clock);

	/* both counters: hints (new_from) learned from the shared start go with an item back to its own, and would lead past what is new to that one alone */
	return own->clock >= shared->clock && own->next >= shared->next && own->clock - shared->clock <= Max(second, (now - Min(now, own->clock)) / 2) &&
		outbox_snapshot_includes(own, shared);
}

static void
forget_shared_start(void)
{
	if (shared_start != NULL)
		outbox_tick_unpin(shared_start);
	shared_start = NULL;
}

/* Takes over the pin of `own`; returns what to begin at, pinned, and leaves *own NULL if it is that. */
static OutboxTick *
share_start(OutboxTick **own)
{
	OutboxTick *start = *own;

	if (start->snapshot == NULL)
	{
		*own = NULL;
		return start;
	}
	if (shared_start != NULL && is_near(shared_start->snapshot, start->snapshot))
		return outbox_tick_pin(shared_start);
	forget_shared_start();
	shared_start = outbox_tick_pin(start);
	*own = NULL;
	return start;
}

/*
 * Where a subscription without a cursor begins.  A window from its own start ends with a tick that was taken after we learned of it, and so sees what that
 * start saw.
 */
static void
place_at_start(OutboxLane *lane)
{
	const OutboxSubscription *subscription = lane->subscription;
	OutboxTick *own = start_tick(subscription, work->epoch);
	OutboxPosition start = {0};

	start.base = start.upper = share_start(&own);
	lane->not_before = pg_atomic_read_u64(&work->database->tick);
	lane->offset = work->head_offset;
	if (start.base == outbox_tick_nothing())
		lane->offset -= Min(lane->offset, estimate_events());
	if (subscription->start_epoch == work->epoch && subscription->has_start_after)
	{
		start.partial = true;
		start.upper = work->newest;
		start.after = subscription->start_after;
	}
	outbox_lane_begin(lane, &start, own);
	outbox_tick_unpin(start.base);
}

static int
compare_starts(const ListCell *a, const ListCell *b)
{
	const OutboxSnapshot *left = ((OutboxLane *) lfirst(a))->subscription->start;
	const OutboxSnapshot *right = ((OutboxLane *) lfirst(b))->subscription->start;
	uint64		first = left == NULL ? 0 : left->clock;
	uint64		second = right == NULL ? 0 : right->clock;

	return first < second ? -1 : first > second;
}

static void
place_all_at_start(List *lanes)
{
	ListCell   *cell;

	work->changing = true;
	list_sort(lanes, compare_starts);
	foreach(cell, lanes)
		place_at_start(lfirst(cell));
	forget_shared_start();
	work->changing = false;
}

/* The ticks that cursors refer to, each loaded once, so that those who stand at the same place read together. */
typedef struct LoadedTick
{
	struct
	{
		int64		epoch;
		uint64		number;
	}			id;
	OutboxTick *tick;
} LoadedTick;

static HTAB *loaded_ticks = NULL;	/* while positions are restored; each pinned once for this table */

static OutboxTick *
load_tick(int64 epoch, uint64 number)
{
	LoadedTick	wanted = {.id = {epoch, number}};
	LoadedTick *loaded;

	if (loaded_ticks == NULL)
	{
		HASHCTL		control = {.keysize = sizeof(wanted.id), .entrysize = sizeof(LoadedTick), .hcxt = CurrentMemoryContext};

		loaded_ticks = hash_create("outbox loaded ticks", 128, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	loaded = hash_search(loaded_ticks, &wanted.id, HASH_FIND, NULL);
	if (loaded == NULL)
	{
		wanted.tick = outbox_cursors_load_tick(epoch, number);
		loaded = hash_search(loaded_ticks, &wanted.id, HASH_ENTER, NULL);
		loaded->tick = wanted.tick;
	}
	return outbox_tick_pin(loaded->tick);
}

static void
forget_loaded_ticks(void)
{
	HASH_SEQ_STATUS scan;
	LoadedTick *loaded;

	if (loaded_ticks == NULL)
		return;
	hash_seq_init(&scan, loaded_ticks);
	while ((loaded = hash_seq_search(&scan)) != NULL)
		outbox_tick_unpin(loaded->tick);
	hash_destroy(loaded_ticks);
	loaded_ticks = NULL;
}

/* The position of a cursor of some epoch; the caller unpins its ticks. */
static OutboxPosition
read_position(const OutboxSubscription *subscription, int64 epoch, const OutboxCursor *cursor)
{
	OutboxPosition position = {.partial = cursor->partial, .after = cursor->after};

	position.base = cursor->base == 0 ? start_tick(subscription, epoch) : load_tick(epoch, cursor->base);
	position.upper = cursor->upper == cursor->base ? outbox_tick_pin(position.base)
		: load_tick(epoch, cursor->upper);
	return position;
}

static void
set_position(OutboxPosition *position, OutboxPosition value)
{
	outbox_position_set(position, &value);
	outbox_tick_unpin(value.base);
	outbox_tick_unpin(value.upper);
}

/* Called between transactions too, so it looks at no table. */
void
outbox_restore_done(OutboxLane *lane)
{
	OutboxPosition start = {.base = outbox_tick_nothing(), .upper = outbox_tick_nothing()};

	outbox_position_set(&lane->position, &start);
}

/*
 * A subscription whose secrets cannot be read is disabled, so that its events wait and everybody sees why.  It was not its operator's wish, so it goes on by
 * itself when they can be read: the key is back, or they were set anew.
 */
static void
judge_secrets(const OutboxSubscription *subscription)
{
	TimestampTz now = GetCurrentTimestamp();

	if (subscription->unreadable)
		secrets_until = Min(secrets_until, TimestampTzPlusMilliseconds(now, UNREADABLE_RETRY_MS));
	if (subscription->unreadable ? !subscription->active : !subscription->was_unreadable)
		return;
	if (!subscription->unreadable)
		outbox_ledger_enable(subscription->id, OUTBOX_UNREADABLE);
	else if (!outbox_ledger_disabling(subscription->id))
	{
		ereport(WARNING,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("secrets of subscription \"%s\" cannot be read: it is disabled", subscription->name),
				 errdetail("Its events wait."),
				 errhint("See the checks secret_key and secrets_unreadable of outbox.health().")));
		outbox_ledger_disable(subscription->id, OUTBOX_UNREADABLE);
	}
	if (work->noted_at == 0)
		work->noted_at = now;
}

/* Takes over the tables' configuration: changes take effect at once, for every request not yet started. */
static List *
load_subscriptions(void)
{
	List	   *subscriptions = outbox_subscription_load(work->epoch);
	List	   *added = NIL;
	ListCell   *cell;

	secrets_until = DT_NOEND;
	foreach(cell, subscriptions)
	{
		OutboxSubscription *subscription = lfirst(cell);

		secrets_until = Min(secrets_until, subscription->secrets_until);
		judge_secrets(subscription);
	}
	work->changing = true;
	outbox_dispatch_configure(subscriptions, &added);
	work->changing = false;
	return added;
}

void
outbox_restore_reload(void)
{
	List	   *beginners = NIL;
	ListCell   *cell;

	if (!outbox_work_begin("loading subscriptions"))
		return;
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!is_armed())
		work->over = true;
	else
	{
		outbox_ledger_meet_matches(work->epoch, work->head.upper->snapshot);
		PopActiveSnapshot();
		CommandCounterIncrement();
		PushActiveSnapshot(GetTransactionSnapshot());
		(void) load_subscriptions();
		foreach(cell, outbox_lane_all())
		{
			OutboxLane *lane = lfirst(cell);

			if (!lane->at_head && lane->position.base == NULL)
				beginners = lappend(beginners, lane);
		}
		place_all_at_start(beginners);
		outbox_replay_load();
		OUTBOX_FAULT("reload-before-commit");
		work->want_reload = false;
		work->moved = work->want_tick = true;
	}
	PopActiveSnapshot();
	SPI_finish();
	outbox_work_commit();
	OUTBOX_FAULT("reload-after-commit");
}

static int
compare_cursors(const void *a, const void *b)
{
	int32		left = ((const OutboxCursor *) a)->subscription;
	int32		right = ((const OutboxCursor *) b)->subscription;

	return left < right ? -1 : left > right;
}

/* They are sorted by subscription. */
static const OutboxCursor *
find_cursor(const OutboxCursor *cursors, int n, int32 subscription)
{
	OutboxCursor key = {.subscription = subscription};

	return n == 0 ? NULL : bsearch(&key, cursors, n, sizeof(OutboxCursor), compare_cursors);
}

static void
restore_cursor(OutboxLane *lane, const OutboxCursor *cursor)
{
	lane->offset = cursor->offset;
	if (cursor->at_head)
		outbox_lane_attach(lane);
	else
	{
		lane->not_before = pg_atomic_read_u64(&work->database->tick);
		set_position(&lane->position, read_position(lane->subscription, work->epoch, cursor));
	}
}

static void
restore_head(const OutboxCursor *cursor)
{
	set_position(&work->head, read_position(NULL, work->epoch, cursor));
	work->head_offset = cursor->offset;
	outbox_lane_head_at(work->head_offset);
}

/* A subscription that came with a dump goes on where it was in the installation that was dumped. */
static void
restore_dumped(OutboxLane *lane, int64 epoch, const OutboxCursor *cursors, int n)
{
	const OutboxCursor *cursor = find_cursor(cursors, n, lane->subscription->id);
	OutboxPosition position = {0};

	if (cursor != NULL && cursor->at_head)
		cursor = find_cursor(cursors, n, 0);
	if (cursor != NULL)
		position = read_position(lane->subscription, epoch, cursor);
	else
	{
		position.base = start_tick(lane->subscription, epoch);
		position.upper = outbox_tick_pin(position.base);
		if (lane->subscription->start_epoch == epoch && lane->subscription->has_start_after)
		{
			outbox_tick_unpin(position.upper);
			position.upper = outbox_tick_everything();
			position.partial = true;
			position.after = lane->subscription->start_after;
		}
	}
	position.restored = epoch;
	lane->offset = work->head_offset;
	set_position(&lane->position, position);
}

static void
restore_all_dumped(List *lanes)
{
	int64		newest = outbox_cursors_restored_epoch(work->epoch);
	OutboxCursor *cursors = NULL;
	int			n = 0;
	ListCell   *cell;

	if (newest != 0)
		cursors = outbox_cursors_load(newest, &n);
	foreach(cell, lanes)
	{
		OutboxLane *lane = lfirst(cell);

		restore_dumped(lane, newest != 0 ? newest : lane->subscription->start_epoch, cursors, n);
	}
}

static void
restore_positions(void)
{
	int			n;
	OutboxCursor *cursors = outbox_cursors_load(work->epoch, &n);
	const OutboxCursor *at = find_cursor(cursors, n, 0);
	List	   *beginners = NIL;
	List	   *dumped = NIL;
	ListCell   *cell;

	/* Without a head row nobody is at the head: it may as well begin here. */
	if (at != NULL)
		restore_head(at);
	else
	{
		OutboxPosition here = {.base = work->newest, .upper = work->newest};

		outbox_position_set(&work->head, &here);
	}
	foreach(cell, load_subscriptions())
	{
		OutboxLane *lane = lfirst(cell);

		at = find_cursor(cursors, n, lane->subscription->id);
		if (at != NULL)
			restore_cursor(lane, at);
		else if (lane->subscription->start_epoch != work->epoch)
			dumped = lappend(dumped, lane);
		else
			beginners = lappend(beginners, lane);
	}
	place_all_at_start(beginners);
	if (dumped != NIL)
		restore_all_dumped(dumped);
	forget_loaded_ticks();
}

void
outbox_restore_resync(void)
{
	int			n;
	OutboxException *exceptions = outbox_ledger_load_exceptions(&n);

	work->changing = true;
	outbox_dispatch_exceptions(exceptions, n);
	work->changing = false;
	work->want_resync = false;
}

TimestampTz
outbox_restore_reload_at(void)
{
	return secrets_until;
}

/* Our statements are those of one version: between the restart and ALTER EXTENSION UPDATE events wait. */
static void
refuse_other_version(const OutboxCatalog *catalog)
{
	if (strcmp(catalog->version, OUTBOX_VERSION) == 0)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("extension \"outbox\" is of version %s, its library of version %s", catalog->version, OUTBOX_VERSION),
			 errdetail("Nothing is delivered until they agree. Events are recorded, and wait."),
			 errhint("Run ALTER EXTENSION outbox UPDATE, or restart the server if the library on disk is newer.")));
}

void
outbox_restore_start(void)
{
	const OutboxCatalog *catalog;

	StartTransactionCommand();
	catalog = outbox_catalog();
	if (catalog == NULL)
	{
		work->over = work->gone = true;
		CommitTransactionCommand();
		return;
	}
	refuse_other_version(catalog);
	work->extension = catalog->extension;
	work->epoch = catalog->epoch;
	LockDatabaseObject(ExtensionRelationId, work->extension, 0, AccessShareLock);	/* lock_timeout bounds it */
	(void) outbox_bell_database(catalog->extension);	/* a slot that the lister made does not know its extension */
	outbox_log_floor(work->database);
	work->start_clock = pg_atomic_read_u64(&work->database->clock);

	/* A tick to begin with: what lanes read for themselves ends there. */
	SPI_connect();
	work->newest = outbox_tick_take(work->database);
	work->over = !is_armed();
	if (!work->over)
	{
		restore_positions();
		OUTBOX_FAULT("restore-after-cursors");
		outbox_restore_resync();
		OUTBOX_FAULT("restore-after-exceptions");
		outbox_replay_load();
		outbox_ledger_meet_matches(work->epoch, NULL);
		outbox_backlog_started(work->epoch);
	}
	PopActiveSnapshot();
	SPI_finish();
	CommitTransactionCommand();
	outbox_tick_flush(work->newest);
}
