/*
 * The arguments of a capture's triggers, and how they stay true.
 *
 * What a capture is stands in the arguments of its triggers, and nowhere else: there psql shows it, pg_dump saves it with the table, partitions inherit it.
 * They are text, so columns are there by name: numbers would not survive a dump of a table that has lost a column.  PostgreSQL follows a renamed column in a
 * trigger's WHEN and UPDATE OF only, and would then refuse ALTER COLUMN TYPE and DROP COLUMN.  So the names are followed here, from the hook that is called for
 * each column that is altered or dropped, in the transaction that does it: a renamed column is renamed in the arguments, a dropped one leaves them.  Of
 * a dropped key column the mark "dropped" remains, and the trigger refuses: changes without their key would be out of order without a word.  (The DROP
 * itself cannot be refused: the hook does not know whether the table is about to go too.)
 *
 * Whoever holds the lock that lets him rename or drop a column has locked out all writers and their triggers; and who captures the table meanwhile, waits.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "capture_arguments.h"
#include "catalog/indexing.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define ALL "*"
#define DROPPED "dropped"

static object_access_hook_type next_object_access = NULL;

/* ---- reading ---- */

/* A number as capture() writes it, of at most as many as there are; -1 if it is none. */
static int
count_argument(const char *text, int at_most)
{
	char	   *end;
	long		number = strtol(text, &end, 10);

	return end == text || *end != '\0' || number < 0 || number > at_most ? -1 : (int) number;
}

bool
outbox_capture_arguments_parse(int n, char **args, OutboxCaptureArguments *result)
{
	int			at = 1;

	memset(result, 0, sizeof(*result));
	if (n < 1)
		return false;
	result->type = args[0];
	result->row = n > 1;
	if (!result->row)
		return true;

	result->key_dropped = strcmp(args[at], DROPPED) == 0;
	result->n_keys = result->key_dropped ? 0 : count_argument(args[at], n - at - 1);
	if (result->n_keys < 0)
		return false;
	result->keys = args + at + 1;
	at += 1 + result->n_keys;
	if (at >= n)
		return false;

	result->all = strcmp(args[at], ALL) == 0;
	result->n_columns = result->all ? 0 : count_argument(args[at], n - at - 1);
	result->columns = args + at + 1;
	return result->n_columns >= 0 && at + 1 + result->n_columns == n;
}

/* ---- following ---- */

/* Appends an argument as pg_trigger.tgargs has it. */
static void
put(StringInfo buffer, const char *argument, int *n)
{
	appendBinaryStringInfo(buffer, argument, strlen(argument) + 1);
	(*n)++;
}

static void
put_names(StringInfo buffer, char **names, int n_names, const char *from, const char *to, int *n)
{
	int			n_left = n_names;

	for (int i = 0; i < n_names && to == NULL; i++)
		n_left -= strcmp(names[i], from) == 0;
	put(buffer, psprintf("%d", n_left), n);
	for (int i = 0; i < n_names; i++)
	{
		if (strcmp(names[i], from) != 0)
			put(buffer, names[i], n);
		else if (to != NULL)
			put(buffer, to, n);
	}
}

static bool
has_name(char **names, int n, const char *name)
{
	for (int i = 0; i < n; i++)
	{
		if (strcmp(names[i], name) == 0)
			return true;
	}
	return false;
}

/* The arguments with column `from` renamed, or, `to` being NULL, without it; NULL if it is not among them. */
static bytea *
with_column(const OutboxCaptureArguments *arguments, const char *from, const char *to, int *n, bool *key_dropped)
{
	bool		in_key = has_name(arguments->keys, arguments->n_keys, from);
	StringInfoData buffer;
	bytea	   *result;

	*key_dropped = in_key && to == NULL;
	if (!in_key && !has_name(arguments->columns, arguments->n_columns, from))
		return NULL;

	*n = 0;
	initStringInfo(&buffer);
	put(&buffer, arguments->type, n);
	if (arguments->key_dropped || *key_dropped)
		put(&buffer, DROPPED, n);
	else
		put_names(&buffer, arguments->keys, arguments->n_keys, from, to, n);
	if (arguments->all)
		put(&buffer, ALL, n);
	else
		put_names(&buffer, arguments->columns, arguments->n_columns, from, to, n);

	result = palloc(VARHDRSZ + buffer.len);
	SET_VARSIZE(result, VARHDRSZ + buffer.len);
	memcpy(VARDATA(result), buffer.data, buffer.len);
	return result;
}

/* Is it one of ours?  By what the function is, so that this asks for nothing that may not be there (any more). */
static bool
is_capture(Form_pg_trigger trigger)
{
	HeapTuple	function = SearchSysCache1(PROCOID, ObjectIdGetDatum(trigger->tgfoid));
	bool		result = false;

	if (!HeapTupleIsValid(function))
		return false;
	if (((Form_pg_proc) GETSTRUCT(function))->prolang == ClanguageId)
	{
		bool		isnull;
		Datum		symbol = SysCacheGetAttr(PROCOID, function, Anum_pg_proc_prosrc, &isnull);

		result = !isnull && strcmp(TextDatumGetCString(symbol), OUTBOX_CAPTURE_SYMBOL) == 0;
	}
	ReleaseSysCache(function);
	return result;
}

/* The arguments of a trigger as capture() has written them; false if somebody else has. */
static bool
arguments_of(Relation triggers, HeapTuple tuple, OutboxCaptureArguments *arguments)
{
	int			n = ((Form_pg_trigger) GETSTRUCT(tuple))->tgnargs;
	char	  **args = palloc_array(char *, n + 1);
	bool		isnull;
	Datum		value = heap_getattr(tuple, Anum_pg_trigger_tgargs, RelationGetDescr(triggers), &isnull);
	char	   *next;

	if (isnull)
		return false;
	next = VARDATA_ANY(DatumGetByteaPP(value));
	for (int i = 0; i < n; i++)
	{
		args[i] = next;
		next += strlen(next) + 1;
	}
	return outbox_capture_arguments_parse(n, args, arguments);
}

/*
 * Renames or removes a column in the arguments of the table's captures.  Says whether it was in a key and is now dropped; of a partition, whose triggers are
 * inherited, its root says so.
 */
static bool
change_column(Oid relation, const char *from, const char *to)
{
	Relation	triggers = table_open(TriggerRelationId, RowExclusiveLock);
	bool		key_lost = false;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_trigger_tgrelid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relation));
	scan = systable_beginscan(triggers, TriggerRelidNameIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		OutboxCaptureArguments arguments;
		Datum		values[Natts_pg_trigger] = {0};
		bool		nulls[Natts_pg_trigger] = {0};
		bool		replace[Natts_pg_trigger] = {0};
		bytea	   *changed;
		bool		key_dropped;
		int			n;

		if (!is_capture((Form_pg_trigger) GETSTRUCT(tuple)) || !arguments_of(triggers, tuple, &arguments))
			continue;
		changed = with_column(&arguments, from, to, &n, &key_dropped);
		if (changed == NULL)
			continue;
		key_lost |= key_dropped && !OidIsValid(((Form_pg_trigger) GETSTRUCT(tuple))->tgparentid);
		values[Anum_pg_trigger_tgargs - 1] = PointerGetDatum(changed);
		replace[Anum_pg_trigger_tgargs - 1] = true;
		values[Anum_pg_trigger_tgnargs - 1] = Int16GetDatum(n);
		replace[Anum_pg_trigger_tgnargs - 1] = true;
		tuple = heap_modify_tuple(tuple, RelationGetDescr(triggers), values, nulls, replace);
		CatalogTupleUpdate(triggers, &tuple->t_self, tuple);
		CacheInvalidateRelcacheByRelid(relation);
	}
	systable_endscan(scan);
	table_close(triggers, RowExclusiveLock);
	return key_lost;
}

static bool
has_triggers(Oid relation)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_class) GETSTRUCT(tuple))->relhastriggers;
	ReleaseSysCache(tuple);
	return result;
}

/* The name that this command has given to a column, perhaps the one it had; NULL if there is no such column. */
static char *
name_from_now_on(Oid relation, AttrNumber number)
{
	Relation	attributes = table_open(AttributeRelationId, AccessShareLock);
	char	   *name = NULL;
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_pg_attribute_attrelid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relation));
	ScanKeyInit(&keys[1], Anum_pg_attribute_attnum, BTEqualStrategyNumber, F_INT2EQ, Int16GetDatum(number));
	scan = systable_beginscan(attributes, AttributeRelidNumIndexId, true, SnapshotSelf, 2, keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		name = pstrdup(NameStr(((Form_pg_attribute) GETSTRUCT(tuple))->attname));
	systable_endscan(scan);
	table_close(attributes, AccessShareLock);
	return name;
}

/* Called when a column was altered, before the command counter moves on: the cache still has the old name, SnapshotSelf sees the new one. */
static void
follow_alter(Oid relation, AttrNumber number)
{
	char	   *before = get_attname(relation, number, true);
	char	   *after = name_from_now_on(relation, number);

	if (before != NULL && after != NULL && strcmp(before, after) != 0)
		(void) change_column(relation, before, after);
}

/* Called just before a column is dropped. */
static void
follow_drop(Oid relation, AttrNumber number)
{
	char	   *name = get_attname(relation, number, true);

	if (name != NULL && change_column(relation, name, NULL))
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("column \"%s\" is in the key of the capture of table \"%s\"", name, get_rel_name(relation)),
				 errdetail("Without it the table's changes have no order: as long as it is captured, they are refused."),
				 errhint("Call outbox.release(), and outbox.capture() with another key, best in this transaction.")));
}

static void
follow(ObjectAccessType access, Oid class, Oid object, int sub, void *arg)
{
	if (next_object_access)
		next_object_access(access, class, object, sub, arg);
	if (class != RelationRelationId || sub <= 0 || (access != OAT_POST_ALTER && access != OAT_DROP) || !has_triggers(object))
		return;
	if (access == OAT_POST_ALTER)
		follow_alter(object, (AttrNumber) sub);
	else
		follow_drop(object, (AttrNumber) sub);
}

void
outbox_capture_arguments_install(void)
{
	next_object_access = object_access_hook;
	object_access_hook = follow;
}
