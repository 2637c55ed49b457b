/*
 * How many subscriptions there may be: in a database, and with one tenant.
 *
 * Nobody waits for anybody: who makes a subscription writes its row first and counts then, rows of transactions that are still open among them (a dirty snapshot).  Of two
 * who do so at the same time, at least the one who counts later sees both; so the limit is never passed.  At the limit, both may be refused, and
 * one that another transaction then takes back, or is about to remove, counts as well.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog.h"
#include "fmgr.h"
#include "lib/qunique.h"
#include "settings.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* A row takes more than 400 bytes, so more than these do not fit into a block: as long as there are few blocks, nobody counts. */
#define ROWS_PER_BLOCK 20

static int
compare(const void *a, const void *b)
{
	int32		x = *(const int32 *) a;
	int32		y = *(const int32 *) b;

	return x < y ? -1 : x > y;
}

/* A row that is being changed is there twice. */
static int
count_different(int32 *ids, int n)
{
	qsort(ids, n, sizeof(int32), compare);
	return (int) qunique(ids, n, sizeof(int32), compare);
}

static void
add(int32 **ids, int *n, int *room, int32 id)
{
	if (*n == *room)
	{
		*room = *room == 0 ? 64 : *room * 2;
		*ids = *ids == NULL ? palloc_array(int32, *room) : repalloc_array(*ids, int32, *room);
	}
	(*ids)[(*n)++] = id;
}

/* tenant NULL: all. */
static int
count_subscriptions(Relation table, text *tenant)
{
	AttrNumber	id_number = get_attnum(RelationGetRelid(table), "id");
	TupleTableSlot *slot = table_slot_create(table, NULL);
	SnapshotData dirty;
	int32	   *ids = NULL;
	int			n = 0;
	int			room = 0;
	bool		null;

	InitDirtySnapshot(dirty);
	if (tenant == NULL)
	{
		TableScanDesc scan = table_beginscan(table, &dirty, 0, NULL);

		while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
			add(&ids, &n, &room, DatumGetInt32(slot_getattr(slot, id_number, &null)));
		table_endscan(scan);
	}
	else
	{
		Oid			index = get_relname_relid("subscription_tenant_idx", RelationGetNamespace(table));
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&key, get_attnum(RelationGetRelid(table), "tenant"), BTEqualStrategyNumber, F_TEXTEQ, PointerGetDatum(tenant));
		scan = systable_beginscan(table, index, OidIsValid(index), &dirty, 1, &key);
		while (HeapTupleIsValid(tuple = systable_getnext(scan)))
			add(&ids, &n, &room, DatumGetInt32(heap_getattr(tuple, id_number, RelationGetDescr(table), &null)));
		systable_endscan(scan);
	}
	ExecDropSingleTupleTableSlot(slot);
	return count_different(ids, n);
}

/*
 * _check_limits(tenant text): raises 54000 if there are more subscriptions than permitted, or with this tenant.  To be called after the row was written.
 */
PG_FUNCTION_INFO_V1(outbox_check_limits);
Datum
outbox_check_limits(PG_FUNCTION_ARGS)
{
	Oid			relation = get_relname_relid("subscription", outbox_catalog_required()->schema);
	Relation	table = table_open(relation, AccessShareLock);

	if ((int64) RelationGetNumberOfBlocks(table) * ROWS_PER_BLOCK > outbox_max_subscriptions &&
		count_subscriptions(table, NULL) > outbox_max_subscriptions)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many subscriptions"),
				 errdetail("A database may have %d (outbox.max_subscriptions); those that open transactions make or remove count.", outbox_max_subscriptions),
				 errhint("Call outbox.unsubscribe() for those that are not needed, or raise outbox.max_subscriptions and restart the server.")));
	if (!PG_ARGISNULL(0) && count_subscriptions(table, PG_GETARG_TEXT_PP(0)) > outbox_max_subscriptions_per_tenant)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many subscriptions with tenant \"%s\"", text_to_cstring(PG_GETARG_TEXT_PP(0))),
				 errdetail("A tenant may have %d (outbox.max_subscriptions_per_tenant); those that open transactions make or remove count.", outbox_max_subscriptions_per_tenant),
				 errhint("Call outbox.unsubscribe() for those that are not needed, or raise outbox.max_subscriptions_per_tenant.")));
	table_close(table, NoLock);
	PG_RETURN_VOID();
}
