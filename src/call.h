/*
 * Calls: what a backend asks the delivery worker, and what it hears, through shared memory.
 *
 * A call is one question and one answer; while it waits, a backend can be cancelled like in any other wait.  A ticket lets the worker learn how
 * the transaction ended that asked: what acknowledges events takes effect when that commits.
 */
#ifndef OUTBOX_CALL_H
#define OUTBOX_CALL_H

#include "bell.h"
#include "utils/uuid.h"

#define OUTBOX_CALL_EVENTS 1000	/* events in a call, at most */
#define OUTBOX_CALL_REASON 160

typedef enum OutboxCallOp
{
	OUTBOX_CALL_LEASE,			/* at most `most` events → n, events, until; token is the new lease's, made by the caller */
	OUTBOX_CALL_EXTEND,			/* → until */
	OUTBOX_CALL_ACK,			/* these events, under the ticket; all: whatever is left of the lease → settled */
	OUTBOX_CALL_NACK,			/* the same */
	OUTBOX_CALL_WITHDRAW		/* the ACK or NACK with this ticket and number is not to be done */
} OutboxCallOp;

typedef enum OutboxCallAnswer
{
	OUTBOX_ANSWER_DONE,
	OUTBOX_ANSWER_UNKNOWN,		/* the worker knows no such subscription */
	OUTBOX_ANSWER_STALE,		/* no such lease, or not any more */
	OUTBOX_ANSWER_FOREIGN,		/* events[0] is not in the lease, or not any more */
	OUTBOX_ANSWER_TAKEN			/* another transaction has settled events[0], and has not ended */
} OutboxCallAnswer;

/* Which transaction of which backend. */
typedef struct OutboxTicket
{
	uint32		seat;
	uint32		serial;			/* counts round and round */
} OutboxTicket;

typedef struct OutboxCallEvent
{
	pg_uuid_t	id;				/* of the event; LEASE: its place in the log */
	int32		attempts;		/* LEASE: that were made before */
} OutboxCallEvent;

/* One question, and then its answer, in the memory of either side. */
typedef struct OutboxCall
{
	OutboxCallOp op;
	int32		subscription;
	pg_uuid_t	token;
	int			most;
	bool		all;
	int64		lease;			/* LEASE, EXTEND: microseconds */
	int64		retry_in;		/* NACK: microseconds; -1: as the retry policy says */
	OutboxTicket ticket;		/* ACK, NACK, WITHDRAW */
	int			number;			/* the same: which of the transaction's */
	char		reason[OUTBOX_CALL_REASON];	/* NACK */
	TimestampTz asked_at;

	OutboxCallAnswer answer;
	TimestampTz until;
	int			settled;
	int			n;				/* of these are told; the asking side has room for no more than it tells or asks for, and for one */
	OutboxCallEvent events[OUTBOX_CALL_EVENTS];
} OutboxCall;

extern void outbox_call_request(void);	/* shmem_request_hook */
extern void outbox_call_startup(void);	/* shmem_startup_hook */

/* ---- the backend's side ---- */

/*
 * Asks the worker of this database, waits, and replaces the question by the answer.  Errors: 55000 when there is no worker; cancellation, after which the question may have been
 * answered unheard.
 */
extern void outbox_call(OutboxDatabase *database, OutboxCall *call);

/* A ticket for the current transaction.  Its end is told by outbox_call_tell, which cannot fail. */
extern OutboxTicket outbox_call_ticket(void);
extern void outbox_call_tell(OutboxDatabase *database, OutboxTicket ticket, bool committed);

/* ---- the worker's side ---- */

/* Visits every call that waits: true: it is answered; false: ask again later.  Returns whether any was put off. */
extern PGDLLEXPORT bool outbox_call_serve(OutboxDatabase *database, bool (*visit) (OutboxCall *call));

typedef enum OutboxTicketState
{
	OUTBOX_TICKET_OPEN,
	OUTBOX_TICKET_COMMITTED,
	OUTBOX_TICKET_ABORTED
} OutboxTicketState;

extern PGDLLEXPORT OutboxTicketState outbox_call_ticket_state(OutboxTicket ticket);

#endif							/* OUTBOX_CALL_H */
