/*
 * Tables without waiting.
 *
 * Maintenance must never make a producer wait, nor wait itself: every lock is conditional, and what is busy now is done another time.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "executor/spi.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "table.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* Tells the trigger on the segments who truncates. */
static bool truncating = false;

/* ---- looking ---- */

Relation
outbox_table_open(Oid oid)
{
	return ConditionalLockRelationOid(oid, AccessShareLock) ? table_open(oid, NoLock) : NULL;
}

static int64
main_fork_bytes(Relation relation)
{
	return (int64) RelationGetNumberOfBlocks(relation) * BLCKSZ;
}

int64
outbox_table_bytes(Relation table)
{
	int64		bytes = main_fork_bytes(table);
	Oid			toast = table->rd_rel->reltoastrelid;
	List	   *indexes = RelationGetIndexList(table);
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	index;

		if (!ConditionalLockRelationOid(lfirst_oid(cell), AccessShareLock))
			continue;
		index = index_open(lfirst_oid(cell), NoLock);
		bytes += main_fork_bytes(index);
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	if (OidIsValid(toast))
	{
		Relation	relation = outbox_table_open(toast);

		if (relation != NULL)
		{
			bytes += outbox_table_bytes(relation);
			table_close(relation, AccessShareLock);
		}
	}
	return bytes;
}

char *
outbox_table_name(Relation relation)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)), RelationGetRelationName(relation));
}

/* ---- emptying a table ---- */

/* Takes the lock and adds it to the list of those taken, at the front. */
static bool
lock_at_once(Oid relation, List **locks)
{
	if (!ConditionalLockRelationOid(relation, AccessExclusiveLock))
		return false;
	*locks = lcons_oid(relation, *locks);
	return true;
}

static bool
lock_table(Oid table, List **locks)
{
	Relation	relation;
	List	   *indexes;
	Oid			toast;
	ListCell   *cell;
	bool		locked;

	if (!lock_at_once(table, locks))
		return false;
	relation = table_open(table, NoLock);
	indexes = RelationGetIndexList(relation);
	toast = relation->rd_rel->reltoastrelid;
	table_close(relation, NoLock);

	locked = !OidIsValid(toast) || lock_table(toast, locks);
	foreach(cell, indexes)
		locked = locked && lock_at_once(lfirst_oid(cell), locks);
	list_free(indexes);
	return locked;
}

void
outbox_table_unlock(List *locks)
{
	ListCell   *cell;

	foreach(cell, locks)
		UnlockRelationOid(lfirst_oid(cell), AccessExclusiveLock);
	list_free(locks);
}

bool
outbox_table_lock(Oid table, List **locks)
{
	*locks = NIL;
	if (lock_table(table, locks))
		return true;
	outbox_table_unlock(*locks);
	return false;
}

void
outbox_table_truncate(const char *name)
{
	char	   *statement = psprintf("TRUNCATE ONLY %s", name);

	truncating = true;
	PG_TRY();
	{
		int			result = SPI_execute(statement, false, 0);

		if (result < 0)
			elog(ERROR, "could not execute \"%s\": %s", statement, SPI_result_code_string(result));
	}
	PG_FINALLY();
	{
		truncating = false;
	}
	PG_END_TRY();
}

bool
outbox_table_truncating(void)
{
	return truncating;
}

bool
outbox_tables_empty(const Oid *tables, int n)
{
	List	   *all = NIL;
	int			locked = 0;

	while (locked < n)
	{
		List	   *locks;

		if (!outbox_table_lock(tables[locked], &locks))
			break;
		all = list_concat(all, locks);
		locked++;
	}
	if (locked < n)
	{
		outbox_table_unlock(all);
		return false;
	}
	SPI_connect();
	for (int i = 0; i < n; i++)
	{
		Relation	relation = table_open(tables[i], NoLock);
		const char *name = outbox_table_name(relation);

		table_close(relation, NoLock);
		outbox_table_truncate(name);
	}
	SPI_finish();
	return true;
}
