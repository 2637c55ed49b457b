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
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "backlog.h"
#include "cursors.h"
#include "dispatch.h"
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
 * Where a subscription without a cursor begins.  A window from its own start ends with a tick that was taken after we learned of it, and so sees what that
 * start saw.
 */
static void
place_at_start(OutboxLane *lane)
{
	const OutboxSubscription *subscription = lane->subscription;
	OutboxPosition start = {0};

	start.base = start.upper = start_tick(subscription, work->epoch);
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
	outbox_position_set(&lane->position, &start);
	outbox_tick_unpin(start.base);
}

/* The ticks that cursors refer to, each loaded once, so that those who stand at the same place read together. */
typedef struct LoadedTick
{
	int64		epoch;
	uint64		number;
	OutboxTick *tick;
} LoadedTick;

static List *loaded_ticks = NIL;	/* while positions are restored; each pinned once for this list */

static OutboxTick *
load_tick(int64 epoch, uint64 number)
{
	LoadedTick *loaded;
	ListCell   *cell;

	foreach(cell, loaded_ticks)
	{
		loaded = lfirst(cell);
		if (loaded->epoch == epoch && loaded->number == number)
			return outbox_tick_pin(loaded->tick);
	}
	loaded = palloc(sizeof(LoadedTick));
	loaded->epoch = epoch;
	loaded->number = number;
	loaded->tick = outbox_cursors_load_tick(epoch, number);
	loaded_ticks = lappend(loaded_ticks, loaded);
	return outbox_tick_pin(loaded->tick);
}

static void
forget_loaded_ticks(void)
{
	ListCell   *cell;

	foreach(cell, loaded_ticks)
		outbox_tick_unpin(((LoadedTick *) lfirst(cell))->tick);
	loaded_ticks = NIL;
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
	outbox_dispatch_configure(subscriptions, &added);
	return added;
}

void
outbox_restore_reload(void)
{
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
				place_at_start(lane);
		}
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
			place_at_start(lane);
	}
	if (dumped != NIL)
		restore_all_dumped(dumped);
	forget_loaded_ticks();
}

void
outbox_restore_resync(void)
{
	int			n;
	OutboxException *exceptions = outbox_ledger_load_exceptions(&n);

	outbox_dispatch_exceptions(exceptions, n);
	work->want_resync = false;
}

TimestampTz
outbox_restore_reload_at(void)
{
	return secrets_until;
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
