/*
 * The catalog: the extension's OID, schema, epoch, segments and inbox, remembered per backend until one of them changes.
 *
 * Everything is found by way of the extension and belongs to it: a schema or a table that only has the right name is never taken for ours.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_proc.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

static OutboxCatalog catalog;
static bool catalog_valid = false;
static uint64 invalidations = 0;	/* of one of ours; while nothing is remembered, of anything */

static void
forget_catalog(Datum arg, Oid relation)
{
	bool		ours = !catalog_valid || !OidIsValid(relation) || relation == catalog.inbox;

	for (int i = 0; i < OUTBOX_SEGMENTS && !ours; i++)
		ours = catalog.segments[i] == relation;
	if (ours)
	{
		catalog_valid = false;
		invalidations++;
	}
}

/* Finds the extension's row: its OID, its schema and its version. */
static bool
find_extension(OutboxCatalog *found)
{
	Relation	extensions = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ, CStringGetDatum("outbox"));
	scan = systable_beginscan(extensions, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		null;
		Datum		version = heap_getattr(tuple, Anum_pg_extension_extversion, RelationGetDescr(extensions), &null);

		found->extension = ((Form_pg_extension) GETSTRUCT(tuple))->oid;
		found->schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
		strlcpy(found->version, TextDatumGetCString(version), sizeof(found->version));
	}
	systable_endscan(scan);
	table_close(extensions, AccessShareLock);
	return HeapTupleIsValid(tuple);
}

/* A table of the extension, and not somebody's table of that name; else InvalidOid. */
static Oid
find_table(const OutboxCatalog *found, const char *name)
{
	Oid			table = get_relname_relid(name, found->schema);

	return OidIsValid(table) && get_rel_relkind(table) == RELKIND_RELATION &&
		getExtensionOfObject(RelationRelationId, table) == found->extension ? table : InvalidOid;
}

static bool
find_tables(OutboxCatalog *found)
{
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		char		name[NAMEDATALEN];

		snprintf(name, sizeof(name), "event_%d", i);
		found->segments[i] = find_table(found, name);
		if (!OidIsValid(found->segments[i]))
			return false;
	}
	found->inbox = find_table(found, "inbox");
	return OidIsValid(found->inbox);
}

/* Calls outbox.epoch(). */
static bool
find_epoch(OutboxCatalog *found)
{
	Oid			function = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum("epoch"),
										   PointerGetDatum(buildoidvector(NULL, 0)), ObjectIdGetDatum(found->schema));
	bool		push = !ActiveSnapshotSet();

	if (!OidIsValid(function) || getExtensionOfObject(ProcedureRelationId, function) != found->extension)
		return false;
	if (push)
		PushActiveSnapshot(GetTransactionSnapshot());
	found->epoch = DatumGetInt64(OidFunctionCall0(function));
	if (push)
		PopActiveSnapshot();
	return true;
}

const OutboxCatalog *
outbox_catalog(void)
{
	static bool registered = false;
	OutboxCatalog found;
	uint64		before;

	if (catalog_valid)
		return &catalog;
	if (!registered)
	{
		CacheRegisterRelcacheCallback(forget_catalog, (Datum) 0);
		registered = true;
	}

	/* What is missing is not remembered: nothing would say when it comes. */
	before = invalidations;
	if (!find_extension(&found) || !find_tables(&found) || !find_epoch(&found))
		return NULL;
	catalog = found;
	catalog_valid = invalidations == before;	/* else it is good for this once */
	return &catalog;
}

const OutboxCatalog *
outbox_catalog_required(void)
{
	const OutboxCatalog *found = outbox_catalog();

	if (found == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"outbox\" does not exist in this database"),
				 errdetail("There is none, or only a part of one."),
				 errhint("Run CREATE EXTENSION outbox.")));
	return found;
}
