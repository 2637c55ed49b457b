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

void
outbox_work_pause(int ms)
{
	work->not_before[work->step] = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
}

bool
outbox_work_step(OutboxStep step, TimestampTz now)
{
	if (now < work->not_before[step])
		return false;
	work->step = step;
	return true;
}

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
	outbox_work_pause(OUTBOX_BUSY_MS);
	return false;
}

