/*
 * Calls between backends and delivery workers.
 *
 * There are a few booths in shared memory for all.  A backend takes a free one, writes its question, rings, and sleeps until it is answered.  Who may touch a booth's call is
 * told by its state, which changes under the exchange's lock:
 *
 *   FREE → WRITING (backend) → ASKED → SERVING (worker) → ANSWERED (backend) → FREE
 *
 * A backend that gives up while the worker serves leaves the booth to the worker.  A worker that serves raises nothing as a rule; when it does, or dies, the question is asked again,
 * of its successor too.
 *
 * A backend has a seat, by its proc number, where it leaves word how its transaction ended.  The worker looks there for the tickets it holds.  It may look late, when more transactions
 * have ended at that seat: the word tells of the last OUTCOMES of those that the worker has heard of.  Between two looks it hears no more than there are booths.
 */
#include "postgres.h"

#include "call.h"
#include "compat.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#define BOOTHS 30
#define OUTCOMES 32				/* bits of half a word */
#define LOOK_MS 500				/* how often a waiting backend looks whether there still is a worker */
#define NO_WORKER_MS 10000		/* how long it waits for one that should be there */

typedef enum BoothState
{
	BOOTH_FREE,
	BOOTH_WRITING,
	BOOTH_ASKED,
	BOOTH_SERVING,
	BOOTH_ANSWERED
} BoothState;

typedef struct Booth
{
	BoothState	state;
	bool		abandoned;		/* SERVING: nobody waits for the answer */
	OutboxDatabase *database;	/* whose worker is asked; shared memory is at the same address in every process */
	pid_t		worker_pid;		/* SERVING: who does */
	ConditionVariable answered;
	OutboxCall	call;
} Booth;

StaticAssertDecl(BOOTHS < OUTCOMES, "a look of the worker's could come too late");

/* A word is the serial of the last ticket that ended, and in the lower half a bit for each of the last tickets, the last one's the lowest: 1, it committed. */
typedef struct Exchange
{
	LWLock		lock;			/* guards the states of booths */
	ConditionVariable booth_free;
	Booth		booths[BOOTHS];
	uint32		n_seats;
	pg_atomic_uint64 words[FLEXIBLE_ARRAY_MEMBER];
} Exchange;

static Exchange *exchange = NULL;

/* Has the worker begun to answer a call since the ticket was made?  If not, it holds nothing under it. */
static bool heard = false;

/* ---- life of the shared memory ---- */

static Size
exchange_size(void)
{
	return add_size(offsetof(Exchange, words), mul_size(MaxBackends, sizeof(pg_atomic_uint64)));
}

void
outbox_call_request(void)
{
	RequestAddinShmemSpace(exchange_size());
}

void
outbox_call_startup(void)
{
	bool		found;
	int			tranche;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	exchange = ShmemInitStruct("outbox calls", exchange_size(), &found);
	if (!found)
	{
		memset(exchange, 0, exchange_size());
		OutboxNewTranche(tranche, "outbox calls");
		LWLockInitialize(&exchange->lock, tranche);
		ConditionVariableInit(&exchange->booth_free);
		for (int i = 0; i < BOOTHS; i++)
			ConditionVariableInit(&exchange->booths[i].answered);
		exchange->n_seats = MaxBackends;
		for (uint32 i = 0; i < exchange->n_seats; i++)
			pg_atomic_init_u64(&exchange->words[i], 0);
	}
	LWLockRelease(AddinShmemInitLock);
}

/* ---- the backend's side ---- */

static Booth *
try_booth(OutboxDatabase *database)
{
	Booth	   *booth = NULL;

	LWLockAcquire(&exchange->lock, LW_EXCLUSIVE);
	for (int i = 0; i < BOOTHS && booth == NULL; i++)
	{
		if (exchange->booths[i].state == BOOTH_FREE)
			booth = &exchange->booths[i];
	}
	if (booth != NULL)
	{
		booth->state = BOOTH_WRITING;
		booth->abandoned = false;
		booth->database = database;
	}
	LWLockRelease(&exchange->lock);
	return booth;
}

static Booth *
take_booth(OutboxDatabase *database)
{
	Booth	   *booth = try_booth(database);

	if (booth != NULL)
		return booth;

	/* with a timeout: from 17 on, who is cancelled just when it is woken does not wake the next one instead */
	ConditionVariablePrepareToSleep(&exchange->booth_free);
	while ((booth = try_booth(database)) == NULL)
		(void) ConditionVariableTimedSleep(&exchange->booth_free, LOOK_MS, OutboxWaitEvent("OutboxCall"));
	ConditionVariableCancelSleep();
	return booth;
}

static void
set_free(Booth *booth)
{
	booth->state = BOOTH_FREE;
	booth->abandoned = false;
	ConditionVariableSignal(&exchange->booth_free);
}

/* The backend goes, answered or not. */
static void
leave_booth(int code, Datum arg)
{
	Booth	   *booth = (Booth *) DatumGetPointer(arg);

	ConditionVariableCancelSleep();
	LWLockAcquire(&exchange->lock, LW_EXCLUSIVE);
	heard |= booth->state == BOOTH_SERVING || booth->state == BOOTH_ANSWERED;
	if (booth->state == BOOTH_SERVING)
		booth->abandoned = true;
	else
		set_free(booth);
	LWLockRelease(&exchange->lock);
}

/* Is there a worker that could answer?  What a dead one was serving is asked again. */
static bool
worker_is_there(Booth *booth)
{
	pid_t		pid;

	LWLockAcquire(&booth->database->lock, LW_SHARED);
	pid = booth->database->worker_pid;
	LWLockRelease(&booth->database->lock);

	LWLockAcquire(&exchange->lock, LW_EXCLUSIVE);
	if (booth->state == BOOTH_SERVING && booth->worker_pid != pid)
		booth->state = BOOTH_ASKED;
	LWLockRelease(&exchange->lock);
	return pid != 0;
}

static bool
is_answered(Booth *booth)
{
	bool		answered;

	LWLockAcquire(&exchange->lock, LW_SHARED);
	answered = booth->state == BOOTH_ANSWERED;
	LWLockRelease(&exchange->lock);
	return answered;
}

static void
refuse_without_worker(OutboxDatabase *database)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the delivery worker of this database is not running"),
			 errdetail("It knows which events wait for a subscription, and who has leased them."),
			 database->wanted ?
			 errhint("It should be: see outbox.health() and the server log.") :
			 errhint("Have an operator call outbox.start().")));
}

static void
wait_for_answer(Booth *booth)
{
	TimestampTz missing_since = 0;

	ConditionVariablePrepareToSleep(&booth->answered);
	while (!is_answered(booth))
	{
		if (worker_is_there(booth))
			missing_since = 0;
		else if (booth->call.op == OUTBOX_CALL_WITHDRAW)
			break;				/* what is to be withdrawn has gone with the worker */
		else if (!booth->database->wanted)
			refuse_without_worker(booth->database);
		else if (missing_since == 0)
			missing_since = GetCurrentTimestamp();
		else if (TimestampDifferenceExceeds(missing_since, GetCurrentTimestamp(), NO_WORKER_MS))
			refuse_without_worker(booth->database);
		outbox_bell_ring(booth->database, OUTBOX_RING_CALLS);
		(void) ConditionVariableTimedSleep(&booth->answered, LOOK_MS, OutboxWaitEvent("OutboxCall"));
	}
	ConditionVariableCancelSleep();
}

static void
copy_call(OutboxCall *to, const OutboxCall *from)
{
	memcpy(to, from, offsetof(OutboxCall, events) + from->n * sizeof(OutboxCallEvent));
}

/* Asks from this booth, and leaves it, whatever happens. */
static void
ask_from(Booth *booth, OutboxCall *call)
{
	PG_ENSURE_ERROR_CLEANUP(leave_booth, PointerGetDatum(booth));
	{
		copy_call(&booth->call, call);
		booth->call.asked_at = GetCurrentTimestamp();
		LWLockAcquire(&exchange->lock, LW_EXCLUSIVE);
		booth->state = BOOTH_ASKED;
		LWLockRelease(&exchange->lock);
		wait_for_answer(booth);
		copy_call(call, &booth->call);
	}
	PG_END_ENSURE_ERROR_CLEANUP(leave_booth, PointerGetDatum(booth));
	leave_booth(0, PointerGetDatum(booth));
}

void
outbox_call(OutboxDatabase *database, OutboxCall *call)
{
	ask_from(take_booth(database), call);
}

OutboxTicket
outbox_call_ticket(void)
{
	OutboxTicket ticket = {.seat = OutboxMyProcNumber()};

	if (ticket.seat >= exchange->n_seats)
		elog(ERROR, "unexpected proc number %u", ticket.seat);
	ticket.serial = (uint32) (pg_atomic_read_u64(&exchange->words[ticket.seat]) >> OUTCOMES) + 1;
	heard = false;
	return ticket;
}

void
outbox_call_tell(OutboxDatabase *database, OutboxTicket ticket, bool committed)
{
	uint32		outcomes = (uint32) pg_atomic_read_u64(&exchange->words[ticket.seat]);

	if (!heard)
		return;
	outcomes = outcomes << 1 | (committed ? 1 : 0);
	pg_atomic_write_u64(&exchange->words[ticket.seat], (uint64) ticket.serial << OUTCOMES | outcomes);
	outbox_bell_ring(database, OUTBOX_RING_CALLS);
}

/* ---- the worker's side ---- */

/* Is there something for the worker in this booth?  What it finds being served was left by an error, its own or its predecessor's. */
static bool
enter_booth(Booth *booth, OutboxDatabase *database)
{
	bool		wanted;

	if (booth->state != BOOTH_ASKED && booth->state != BOOTH_SERVING)
		return false;			/* without the lock: who asks rings after it */

	LWLockAcquire(&exchange->lock, LW_EXCLUSIVE);
	wanted = booth->database == database && (booth->state == BOOTH_ASKED || booth->state == BOOTH_SERVING);
	if (wanted && booth->abandoned)
	{
		set_free(booth);
		wanted = false;
	}
	else if (wanted)
	{
		booth->state = BOOTH_SERVING;
		booth->worker_pid = MyProcPid;
	}
	LWLockRelease(&exchange->lock);
	return wanted;
}

bool
outbox_call_serve(OutboxDatabase *database, bool (*visit) (OutboxCall *call))
{
	bool		put_off = false;

	for (int i = 0; i < BOOTHS; i++)
	{
		Booth	   *booth = &exchange->booths[i];
		bool		answered;

		if (!enter_booth(booth, database))
			continue;
		answered = visit(&booth->call);
		LWLockAcquire(&exchange->lock, LW_EXCLUSIVE);
		if (booth->abandoned)
			set_free(booth);
		else
			booth->state = answered ? BOOTH_ANSWERED : BOOTH_ASKED;
		LWLockRelease(&exchange->lock);
		if (answered)
			ConditionVariableSignal(&booth->answered);
		else
			put_off = true;
	}
	return put_off;
}

OutboxTicketState
outbox_call_ticket_state(OutboxTicket ticket)
{
	uint64		word = pg_atomic_read_u64(&exchange->words[ticket.seat]);
	int32		since = (int32) ((uint32) (word >> OUTCOMES) - ticket.serial);

	if (since < 0)
		return OUTBOX_TICKET_OPEN;
	return since < OUTCOMES && (word >> since & 1) != 0 ? OUTBOX_TICKET_COMMITTED : OUTBOX_TICKET_ABORTED;
}
