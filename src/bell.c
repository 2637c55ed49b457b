/*
 * The bell: shared memory, the commit hook, and the worker's latch.
 *
 * A transaction that enqueued or changed something notes why; the commit callback, which runs when its rows can be seen, ORs the reasons into
 * the slot and sets the worker's latch.  The worker resets its latch, takes the reasons, and only then looks: no ring is lost.  A ring is a
 * hint all the same: a worker must also look from time to time, because commits by other means (prepared transactions finished by an apply
 * worker) do not ring.
 *
 * The callback runs after the commit is on disk, where an error is a PANIC: it allocates nothing, calls nothing that raises, and only takes
 * light-weight locks.
 *
 * Locks are taken in this order: key, bell, lanes, slot; the launcher's lock is taken alone.  A slot's `database` changes only under the bell's and the
 * slot's lock, both exclusive.
 */
#include "postgres.h"

#include "access/xact.h"
#include "bell.h"
#include "commands/dbcommands.h"
#include "compat.h"
#include "fault.h"
#include "miscadmin.h"
#include "settings.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"

#define KEY_LOCKS 128

typedef struct Bell
{
	LWLock		lock;			/* which database has which slot */
	LWLock		lanes_lock;		/* the hash table of lanes */
	LWLockPadded key_locks[KEY_LOCKS];
	OutboxLauncher launcher;
	int			n;
	OutboxDatabase slots[FLEXIBLE_ARRAY_MEMBER];
} Bell;

typedef struct LaneKey
{
	Oid			database;
	Oid			extension;
	int32		subscription;
} LaneKey;

typedef struct Lane
{
	LaneKey		key;
	OutboxLaneStatus status;	/* guarded by the slot's lock */
} Lane;

typedef enum Arming
{
	ARMING_UNCHANGED,
	ARMING_ON,
	ARMING_OFF
} Arming;

static Bell *bell = NULL;
static HTAB *lanes = NULL;

/* This backend's database; a slot in use is never given to another one. */
static OutboxDatabase *mine = NULL;

/* What to do when this transaction commits. */
static OutboxDatabase *noted_database = NULL;
static uint32 noted_reasons = 0;
static TimestampTz noted_due = DT_NOEND;	/* with OUTBOX_RING_SCHEDULED */
static Arming noted_arming = ARMING_UNCHANGED;

/* ---- life of the shared memory ---- */

static Size
bell_size(void)
{
	return add_size(offsetof(Bell, slots), mul_size(outbox_max_databases, sizeof(OutboxDatabase)));
}

void
outbox_bell_request(void)
{
	RequestAddinShmemSpace(MAXALIGN(bell_size()));
	RequestAddinShmemSpace(hash_estimate_size(outbox_max_subscriptions, sizeof(Lane)));
}

static void
initialize_slot(OutboxDatabase *slot, int tranche)
{
	LWLockInitialize(&slot->lock, tranche);
	pg_atomic_init_u64(&slot->clock, 0);
	pg_atomic_init_u32(&slot->current, OUTBOX_NO_SEGMENT);
	pg_atomic_init_u64(&slot->tick, 0);
	pg_atomic_init_u64(&slot->due, (uint64) DT_NOEND);
	pg_atomic_init_u32(&slot->rung, 0);
	pg_atomic_init_u32(&slot->worker, OUTBOX_NO_PROC);
	pg_atomic_init_u32(&slot->prepared, 0);
	ConditionVariableInit(&slot->worker_gone);
	ConditionVariableInit(&slot->recorded);
	pg_atomic_init_u32(&slot->awaited, 0);
	for (int i = 0; i < OUTBOX_REFUSALS; i++)
	{
		pg_atomic_init_u64(&slot->refusals[i].consumer, 0);
		pg_atomic_init_u64(&slot->refusals[i].count, 0);
	}
}

static void
initialize_bell(int tranche)
{
	memset(bell, 0, bell_size());
	LWLockInitialize(&bell->lock, tranche);
	LWLockInitialize(&bell->lanes_lock, tranche);
	LWLockInitialize(&bell->launcher.lock, tranche);
	for (int i = 0; i < KEY_LOCKS; i++)
		LWLockInitialize(&bell->key_locks[i].lock, tranche);
	pg_atomic_init_u32(&bell->launcher.proc, OUTBOX_NO_PROC);
	pg_atomic_init_u64(&bell->launcher.told, 0);
	pg_atomic_init_u64(&bell->launcher.listed, 0);
	ConditionVariableInit(&bell->launcher.lister_gone);
	bell->n = outbox_max_databases;
	for (int i = 0; i < bell->n; i++)
		initialize_slot(&bell->slots[i], tranche);
}

void
outbox_bell_startup(void)
{
	HASHCTL		info = {.keysize = sizeof(LaneKey), .entrysize = sizeof(Lane)};
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	bell = ShmemInitStruct("outbox", bell_size(), &found);
	if (!found)
	{
		int			tranche;

		OutboxNewTranche(tranche, "outbox");
		initialize_bell(tranche);
	}
	lanes = OutboxShmemInitHash("outbox subscriptions", outbox_max_subscriptions, &info, HASH_ELEM | HASH_BLOBS);
	LWLockRelease(AddinShmemInitLock);
}

bool
outbox_bell_ready(void)
{
	return bell != NULL;
}

int
outbox_abi(void)
{
	return OUTBOX_ABI;
}

/* ---- slots ---- */

int
outbox_bell_slots(void)
{
	return bell == NULL ? 0 : bell->n;
}

OutboxDatabase *
outbox_bell_slot(int number)
{
	return number >= 0 && number < outbox_bell_slots() ? &bell->slots[number] : NULL;
}

/* The caller holds the bell's lock. */
static OutboxDatabase *
find_slot(Oid database)
{
	for (int i = 0; i < bell->n; i++)
	{
		if (bell->slots[i].database == database)
			return &bell->slots[i];
	}
	return NULL;
}

OutboxDatabase *
outbox_bell_find(Oid database)
{
	OutboxDatabase *slot;

	if (bell == NULL || !OidIsValid(database))
		return NULL;
	LWLockAcquire(&bell->lock, LW_SHARED);
	slot = find_slot(database);
	LWLockRelease(&bell->lock);
	return slot;
}

/* Removes the lanes of a database, but those of this extension (InvalidOid: all). */
static void
forget_lanes(Oid database, Oid kept)
{
	HASH_SEQ_STATUS scan;
	Lane	   *lane;

	LWLockAcquire(&bell->lanes_lock, LW_EXCLUSIVE);
	hash_seq_init(&scan, lanes);
	while ((lane = hash_seq_search(&scan)) != NULL)
	{
		if (lane->key.database == database && (!OidIsValid(kept) || lane->key.extension != kept))
			(void) hash_search(lanes, &lane->key, HASH_REMOVE, NULL);
	}
	LWLockRelease(&bell->lanes_lock);
}

/*
 * Nothing is known about the segments any more.  The clock and the tick counter go on, because a worker may be counting, and neither ever goes back for the same database;
 * so do the fields that belong to the worker and to those who wait for it.  The caller holds the slot's lock.
 */
static void
reset_log(OutboxDatabase *slot)
{
	pg_atomic_write_u32(&slot->current, OUTBOX_NO_SEGMENT);
	memset(slot->segments, 0, sizeof(slot->segments));
	slot->rotated_at = 0;
}

static void
reset_refusals(OutboxDatabase *slot)
{
	for (int i = 0; i < OUTBOX_REFUSALS; i++)
	{
		pg_atomic_write_u64(&slot->refusals[i].consumer, 0);
		pg_atomic_write_u64(&slot->refusals[i].count, 0);
	}
}

/* The caller holds the bell's lock; extension InvalidOid: not known yet. */
static void
occupy_slot(OutboxDatabase *slot, Oid database, Oid extension)
{
	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	if (slot->database != database)
	{
		pg_atomic_write_u64(&slot->clock, 0);
		pg_atomic_write_u64(&slot->tick, 0);
		pg_atomic_write_u64(&slot->due, (uint64) DT_NOEND);
		pg_atomic_write_u32(&slot->rung, 0);
		pg_atomic_write_u32(&slot->prepared, 0);
		slot->wanted = false;
		slot->trouble[0] = '\0';
		memset(&slot->status, 0, sizeof(slot->status));
	}
	reset_log(slot);
	reset_refusals(slot);
	slot->extension = extension;
	slot->database = database;
	LWLockRelease(&slot->lock);
}

/* Does nothing while a worker has it.  The caller holds the bell's lock, exclusively. */
static void
vacate_slot(OutboxDatabase *slot)
{
	Oid			database = slot->database;
	bool		free;

	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	free = slot->worker_pid == 0;
	if (free)
	{
		slot->database = InvalidOid;
		slot->extension = InvalidOid;
		slot->wanted = false;
	}
	LWLockRelease(&slot->lock);
	if (free)
		forget_lanes(database, InvalidOid);
}

void
outbox_bell_free(Oid database)
{
	OutboxDatabase *slot;

	LWLockAcquire(&bell->lock, LW_EXCLUSIVE);
	slot = find_slot(database);
	if (slot != NULL)
		vacate_slot(slot);
	LWLockRelease(&bell->lock);
}

/* Frees the slots of databases that were dropped without our seeing it.  Looks into the catalog, so it holds no lock while looking. */
static void
reclaim_slots(void)
{
	for (int i = 0; i < bell->n; i++)
	{
		Oid			database = bell->slots[i].database;

		if (OidIsValid(database) && get_database_name(database) == NULL)
			outbox_bell_free(database);
	}
}

/* The slot of a database with this extension (InvalidOid: any), made if need be; NULL when all are taken. */
static OutboxDatabase *
claim_slot(Oid database, Oid extension)
{
	OutboxDatabase *slot;

	LWLockAcquire(&bell->lock, LW_EXCLUSIVE);
	slot = find_slot(database);
	if (slot == NULL)
	{
		slot = find_slot(InvalidOid);
		if (slot != NULL)
			occupy_slot(slot, database, extension);
	}
	else if (OidIsValid(extension) && slot->extension != extension)
		occupy_slot(slot, database, extension);
	LWLockRelease(&bell->lock);
	return slot;
}

OutboxDatabase *
outbox_bell_database(Oid extension)
{
	if (mine != NULL && mine->extension == extension)
		return mine;

	if (bell == NULL)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("outbox must be loaded via \"shared_preload_libraries\""),
				errhint("Add outbox to shared_preload_libraries and restart the server."));

	mine = claim_slot(MyDatabaseId, extension);
	if (mine == NULL)
	{
		reclaim_slots();
		mine = claim_slot(MyDatabaseId, extension);
	}
	if (mine == NULL)
		ereport(ERROR,
				errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				errmsg("outbox cannot be used in more than %d databases", bell->n),
				errhint("Increase outbox.max_databases and restart the server."));
	return mine;
}

LWLock *
outbox_bell_key_lock(uint64 hash)
{
	return &bell->key_locks[hash % KEY_LOCKS].lock;
}

/* ---- ringing ---- */

static void
set_latch(uint32 proc)
{
	if (proc != OUTBOX_NO_PROC)
		SetLatch(&GetPGProcByNumber(proc)->procLatch);
}

void
outbox_bell_wake_launcher(void)
{
	if (bell != NULL)
		set_latch(pg_atomic_read_u32(&bell->launcher.proc));
}

/*
 * Callable after commit: cannot fail.  Under load the reasons are there already, and it is enough to see that, after a full barrier: the worker takes them, with another one, before
 * it looks at what is committed.  So the producers of a busy worker only read what they share.
 */
void
outbox_bell_ring(OutboxDatabase *database, uint32 reasons)
{
	pg_memory_barrier();
	if ((pg_atomic_read_u32(&database->rung) & reasons) != reasons)
		pg_atomic_fetch_or_u32(&database->rung, reasons);
	set_latch(pg_atomic_read_u32(&database->worker));
	if (reasons & OUTBOX_RING_ARMED)
	{
		pg_atomic_fetch_add_u64(&bell->launcher.told, 1);
		outbox_bell_wake_launcher();
	}
}

void
outbox_bell_note(OutboxDatabase *database, uint32 reasons)
{
	noted_database = database;
	noted_reasons |= reasons;
}

void
outbox_bell_note_armed(OutboxDatabase *database, bool armed)
{
	outbox_bell_note(database, OUTBOX_RING_ARMED | OUTBOX_RING_SUBSCRIPTIONS);
	noted_arming = armed ? ARMING_ON : ARMING_OFF;
}

void
outbox_bell_note_due(OutboxDatabase *database, TimestampTz at)
{
	outbox_bell_note(database, OUTBOX_RING_SCHEDULED);
	noted_due = Min(noted_due, at);
}

bool
outbox_bell_lower_due(OutboxDatabase *database, TimestampTz at)
{
	uint64		due = pg_atomic_read_u64(&database->due);

	while (at < (TimestampTz) due)
	{
		if (pg_atomic_compare_exchange_u64(&database->due, &due, (uint64) at))
			return true;
	}
	return false;
}

static void
ring_noted(void)
{
	/* The worker need not wake for an event that is due later than the one it waits for. */
	if (noted_reasons & OUTBOX_RING_SCHEDULED)
	{
		noted_reasons &= ~OUTBOX_RING_SCHEDULED;
		if (!outbox_bell_lower_due(noted_database, noted_due) && noted_reasons == 0)
			return;
	}
	if (noted_arming != ARMING_UNCHANGED)
	{
		LWLockAcquire(&noted_database->lock, LW_EXCLUSIVE);
		noted_database->wanted = noted_arming == ARMING_ON;
		LWLockRelease(&noted_database->lock);
	}
	outbox_bell_ring(noted_database, noted_reasons);
}

static void
forget_noted(void)
{
	noted_reasons = 0;
	noted_due = DT_NOEND;
	noted_arming = ARMING_UNCHANGED;
}

static void
at_transaction_end(XactEvent event, void *arg)
{
	if (noted_reasons == 0)
		return;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
		OUTBOX_FAULT_QUIET("enqueue-after-commit");
			ring_noted();
			forget_noted();
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (noted_arming != ARMING_UNCHANGED)
				ereport(ERROR,
						errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("cannot PREPARE a transaction that has executed outbox.start() or outbox.stop()"));
			break;
		case XACT_EVENT_PREPARE:
			pg_atomic_fetch_or_u32(&noted_database->prepared, noted_reasons);
			forget_noted();
			break;
		case XACT_EVENT_ABORT:
			forget_noted();
			break;
		default:
			break;
	}
}

void
outbox_bell_install(void)
{
	RegisterXactCallback(at_transaction_end, NULL);
}

/* ---- the worker's side ---- */

static void
detach(int code, Datum arg)
{
	OutboxDatabase *slot = (OutboxDatabase *) DatumGetPointer(arg);

	pg_atomic_write_u32(&slot->worker, OUTBOX_NO_PROC);
	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	slot->worker_pid = 0;
	slot->status.in_flight = 0;
	LWLockRelease(&slot->lock);
	ConditionVariableBroadcast(&slot->worker_gone);
	outbox_bell_wake_launcher();
}

bool
outbox_bell_attach(OutboxDatabase *database)
{
	bool		free;

	LWLockAcquire(&database->lock, LW_EXCLUSIVE);
	free = database->worker_pid == 0 && OidIsValid(database->database);
	if (free)
	{
		database->worker_end = database->yield > 0 ? OUTBOX_END_YIELD : OUTBOX_END_ERROR;
		free = database->yield == 0;
	}
	if (free)
		database->worker_pid = MyProcPid;
	LWLockRelease(&database->lock);
	if (!free)
		return false;

	on_shmem_exit(detach, PointerGetDatum(database));
	pg_atomic_write_u32(&database->worker, OutboxMyProcNumber());

	/* lanes of an extension that is gone: not before, because its worker may still have been writing to them */
	forget_lanes(database->database, database->extension);
	return true;
}

void
outbox_bell_set_end(OutboxDatabase *database, OutboxWorkerEnd end)
{
	LWLockAcquire(&database->lock, LW_EXCLUSIVE);
	if (database->worker_pid == MyProcPid)
		database->worker_end = end;
	LWLockRelease(&database->lock);
}

bool
outbox_bell_must_yield(OutboxDatabase *database)
{
	bool		yield;

	LWLockAcquire(&database->lock, LW_SHARED);
	yield = database->yield > 0;
	LWLockRelease(&database->lock);
	return yield;
}

uint32
outbox_bell_answer(OutboxDatabase *database)
{
	return pg_atomic_exchange_u32(&database->rung, 0);
}

/* ---- lanes ---- */

OutboxLaneStatus *
outbox_bell_lane(OutboxDatabase *database, int32 subscription, bool create)
{
	LaneKey		key = {database->database, database->extension, subscription};
	Lane	   *lane;
	bool		found;

	LWLockAcquire(&bell->lanes_lock, create ? LW_EXCLUSIVE : LW_SHARED);
	lane = hash_search(lanes, &key, HASH_FIND, NULL);
	if (lane == NULL && create && hash_get_num_entries(lanes) < outbox_max_subscriptions)
	{
		lane = hash_search(lanes, &key, HASH_ENTER_NULL, &found);
		if (lane != NULL)
			memset(&lane->status, 0, sizeof(lane->status));
	}
	LWLockRelease(&bell->lanes_lock);
	return lane == NULL ? NULL : &lane->status;
}

void
outbox_bell_forget_lane(OutboxDatabase *database, int32 subscription)
{
	LaneKey		key = {database->database, database->extension, subscription};

	LWLockAcquire(&bell->lanes_lock, LW_EXCLUSIVE);
	(void) hash_search(lanes, &key, HASH_REMOVE, NULL);
	LWLockRelease(&bell->lanes_lock);
}

OutboxLaneCopy *
outbox_bell_copy_lanes(OutboxDatabase *database, int *n)
{
	OutboxLaneCopy *copies;
	HASH_SEQ_STATUS scan;
	Lane	   *lane;

	*n = 0;
	LWLockAcquire(&bell->lanes_lock, LW_SHARED);
	copies = palloc_extended(mul_size(hash_get_num_entries(lanes) + 1, sizeof(OutboxLaneCopy)), MCXT_ALLOC_HUGE);
	LWLockAcquire(&database->lock, LW_SHARED);
	hash_seq_init(&scan, lanes);
	while ((lane = hash_seq_search(&scan)) != NULL)
	{
		if (lane->key.database == database->database && lane->key.extension == database->extension)
		{
			copies[*n].subscription = lane->key.subscription;
			copies[*n].status = lane->status;
			(*n)++;
		}
	}
	LWLockRelease(&database->lock);
	LWLockRelease(&bell->lanes_lock);
	return copies;
}

/* ---- the launcher's side ---- */

OutboxLauncher *
outbox_bell_launcher(void)
{
	return bell == NULL ? NULL : &bell->launcher;
}

/* Takes back what the lister did not find armed. */
static void
disarm_others(List *armed, uint64 told)
{
	for (int i = 0; i < bell->n; i++)
	{
		OutboxDatabase *slot = &bell->slots[i];

		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
		if (!list_member_oid(armed, slot->database) && pg_atomic_read_u64(&bell->launcher.told) == told)
			slot->wanted = false;
		LWLockRelease(&slot->lock);
	}
}

int
outbox_bell_listed(List *armed, uint64 told)
{
	int			missing = 0;
	ListCell   *cell;

	foreach(cell, armed)
	{
		OutboxDatabase *slot = claim_slot(lfirst_oid(cell), InvalidOid);

		if (slot == NULL)
		{
			reclaim_slots();
			slot = claim_slot(lfirst_oid(cell), InvalidOid);
		}
		if (slot == NULL)
		{
			missing++;
			continue;
		}
		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
		slot->wanted = true;
		LWLockRelease(&slot->lock);
	}
	disarm_others(armed, told);
	return missing;
}
