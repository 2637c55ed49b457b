/*
 * The transactions of the steps.
 *
 * Each is short, and begins by locking the extension, conditionally: so DROP EXTENSION never waits for us for long, we never wait for it, and nothing
 * that is half dropped is ever touched.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/backend_status.h"
#include "utils/timestamp.h"

#include "event_log.h"
#include "work.h"

OutboxWork	outbox_work = {.want_tick = true};

static OutboxWork *const work = &outbox_work;

void
outbox_work_commit(void)
{
	CommitTransactionCommand();
	MemoryContextSwitchTo(work->context);
	pgstat_report_stat(false);
}

/* Opens a transaction on an extension that is there and stays there; false: not now (or over). */
bool
outbox_work_begin(const char *activity)
{
	const OutboxCatalog *catalog;

	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, activity);
	StartTransactionCommand();
	if (ConditionalLockDatabaseObject(ExtensionRelationId, work->extension, 0, AccessShareLock))
	{
		catalog = outbox_catalog();
		if (catalog != NULL && catalog->extension == work->extension)
		{
			work->schema = catalog->schema;
			return true;
		}
		work->over = work->gone = true;
	}
	outbox_work_commit();
	return false;
}

void
outbox_work_pause(TimestampTz now, int ms)
{
	work->paused_until = TimestampTzPlusMilliseconds(now, ms);
}
