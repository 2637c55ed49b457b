/*
 * Giving way: some commands need a database without anybody connected to it, and fail if there is a delivery worker.
 *
 * A utility hook asks the worker to go, waits for it, and runs the command; afterwards the launcher starts it again.  Listers are held off as
 * well, in whatever database they are.  Only who may run the command may send workers away.  The requests are counters, taken back also
 * when the command fails or its backend dies.
 *
 * The hook also rings after COMMIT PREPARED: the transaction that it commits was another backend's, and no commit callback runs for it.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "bell.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "compat.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
#include "yield.h"

/* Milliseconds.  Longer than that, and the command shall fail by itself, saying why. */
#define PATIENCE 10000

static ProcessUtility_hook_type next_utility = NULL;

/* ---- which database must be left, if any ---- */

static DefElem *
find_option(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, name) == 0)
			return option;
	}
	return NULL;
}

/* The database of this name if it is the current role's; else the command is about to fail. */
static Oid
own_database(const char *name)
{
	Oid			database = get_database_oid(name, true);

	return OidIsValid(database) && OutboxOwnsDatabase(database, GetUserId()) ? database : InvalidOid;
}

static bool
may_create_databases(void)
{
	HeapTuple	role;
	bool		may;

	if (superuser())
		return true;
	role = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (!HeapTupleIsValid(role))
		return false;
	may = ((Form_pg_authid) GETSTRUCT(role))->rolcreatedb;
	ReleaseSysCache(role);
	return may;
}

/* The database that CREATE DATABASE copies, if the current role may do that. */
static Oid
template_database(CreatedbStmt *statement)
{
	DefElem    *option = find_option(statement->options, "template");
	const char *name = option != NULL && option->arg != NULL ? defGetString(option) : "template1";
	Oid			database = get_database_oid(name, true);
	HeapTuple	tuple;
	bool		istemplate;

	if (!OidIsValid(database) || !may_create_databases())
		return InvalidOid;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	istemplate = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);
	return istemplate || OutboxOwnsDatabase(database, GetUserId()) ? database : InvalidOid;
}

static Oid
database_to_leave(Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_CreatedbStmt:
			return template_database((CreatedbStmt *) statement);
		case T_DropdbStmt:
			return own_database(((DropdbStmt *) statement)->dbname);
		case T_RenameStmt:
			if (((RenameStmt *) statement)->renameType != OBJECT_DATABASE)
				return InvalidOid;
			return own_database(((RenameStmt *) statement)->subname);
		case T_AlterDatabaseStmt:
			if (find_option(((AlterDatabaseStmt *) statement)->options, "tablespace") == NULL)
				return InvalidOid;
			return own_database(((AlterDatabaseStmt *) statement)->dbname);
		default:
			return InvalidOid;
	}
}

/* ---- asking and waiting ---- */

static void
count(OutboxDatabase *slot, int change)
{
	OutboxLauncher *launcher = outbox_bell_launcher();

	LWLockAcquire(&launcher->lock, LW_EXCLUSIVE);
	launcher->holds += change;
	LWLockRelease(&launcher->lock);

	if (slot != NULL)
	{
		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
		slot->yield += change;
		LWLockRelease(&slot->lock);
	}
}

static void
take_back(int code, Datum slot)
{
	count((OutboxDatabase *) DatumGetPointer(slot), -1);
	outbox_bell_wake_launcher();
}

static void
wait_until_gone(const pid_t *pid, LWLock *lock, ConditionVariable *gone, TimestampTz until)
{
	ConditionVariablePrepareToSleep(gone);
	for (;;)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
		bool		done;

		LWLockAcquire(lock, LW_SHARED);
		done = *pid == 0;
		LWLockRelease(lock);
		if (done || left <= 0)
			break;
		(void) ConditionVariableTimedSleep(gone, left, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

static void
send_away(OutboxDatabase *slot)
{
	OutboxLauncher *launcher = outbox_bell_launcher();
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PATIENCE);

	if (slot != NULL)
	{
		outbox_bell_ring(slot, 0);
		wait_until_gone(&slot->worker_pid, &slot->lock, &slot->worker_gone, until);
	}
	wait_until_gone(&launcher->lister_pid, &launcher->lock, &launcher->lister_gone, until);
}

/* ---- the hook ---- */

/* A utility command: the arguments of the hook. */
typedef struct Command
{
	PlannedStmt *plan;
	const char *query;
	bool		read_only_tree;
	ProcessUtilityContext context;
	ParamListInfo params;
	QueryEnvironment *environment;
	DestReceiver *receiver;
	QueryCompletion *completion;
} Command;

static void
run(const Command *c)
{
	ProcessUtility_hook_type next = next_utility ? next_utility : standard_ProcessUtility;

	next(c->plan, c->query, c->read_only_tree, c->context, c->params, c->environment, c->receiver, c->completion);
}

static void
run_alone(const Command *command, const Oid database, OutboxDatabase *const slot)
{
	const bool	drops = IsA(command->plan->utilityStmt, DropdbStmt);

	count(slot, 1);
	PG_ENSURE_ERROR_CLEANUP(take_back, PointerGetDatum(slot));
	{
		send_away(slot);
		run(command);

		/* while workers are still held off, so that none is sent into a database that is gone */
		if (drops)
			outbox_bell_free(database);
	}
	PG_END_ENSURE_ERROR_CLEANUP(take_back, PointerGetDatum(slot));
	take_back(0, PointerGetDatum(slot));
}

static void
run_commit_prepared(const Command *command)
{
	OutboxDatabase *slot;

	run(command);
	slot = outbox_bell_find(MyDatabaseId);
	if (slot != NULL)
		outbox_bell_ring(slot, pg_atomic_read_u32(&slot->prepared) | OUTBOX_RING_EVENTS);
}

static void
utility(PlannedStmt *plan, const char *query, bool read_only_tree, ProcessUtilityContext context, ParamListInfo params,
		QueryEnvironment *environment, DestReceiver *receiver, QueryCompletion *completion)
{
	Command		command = {plan, query, read_only_tree, context, params, environment, receiver, completion};
	Node	   *statement = plan->utilityStmt;
	Oid			database = outbox_bell_ready() ? database_to_leave(statement) : InvalidOid;

	if (OidIsValid(database))
		run_alone(&command, database, outbox_bell_find(database));
	else if (IsA(statement, TransactionStmt) && ((TransactionStmt *) statement)->kind == TRANS_STMT_COMMIT_PREPARED)
		run_commit_prepared(&command);
	else
		run(&command);
}

void
outbox_yield_install(void)
{
	next_utility = ProcessUtility_hook;
	ProcessUtility_hook = utility;
}
