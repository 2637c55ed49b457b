/*
 * Where a producer appends, rotation, sealing and retirement (src/event_log.c: open_current; src/ring.c), and what a tick reads (outbox_log_open).
 *
 * Producers append one event a transaction, commit or roll back; maintenance rotates, seals and retires; the worker ticks, reads only the segments that the tick
 * must still read, and commits its cursor some time later.  The server may crash: what is shared in memory is forgotten, and found again from the tables.
 * Sets of events are bits of a byte.
 *
 * Claims: a tick misses nothing that its snapshot sees and the one before did not; what is emptied was all read, by a cursor that is
 * committed, and nobody was writing to it.
 *
 * Without one of these a claim fails:
 *   BY_SNAPSHOT   the segment is chosen by what the transaction saw when it began: how PgQ chooses its table, and loses events
 *   NO_SECOND_LOOK the number of the current segment is not read again under the lock
 *   SEAL_EARLY    the tick that is running counts as one that began after the sealing
 *   PUBLISH_FIRST a segment is published before it is marked unsealed
 *   UNPROVEN      a segment is emptied when a tick in memory, not a committed cursor, is past its sealing
 *   REMEMBER_SEAL tick numbers begin anew after a crash, below those of committed cursors
 */
#define SEGMENTS 2				/* one to write to, one to read and to empty */
#define PRODUCERS 2
#ifndef FIRST
#define FIRST 2					/* events of the first producer; the second has one */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef LOCKED
#define LOCKED 1				/* ticks that may come to nothing because a segment is locked */
#endif

/* on disk */
byte rows[SEGMENTS];			/* row versions in a segment, dead ones too */
byte newest[SEGMENTS];			/* the highest id among them, from 1 */
byte committed;					/* events whose transaction committed */
byte cursor, cursor_tick;		/* what the committed cursor's snapshot saw, and its number */

/* in memory */
byte current, tick;
bool sealed[SEGMENTS];
byte seal_tick[SEGMENTS];
byte base, base_tick;			/* the head */
byte clock;						/* ids */

/* locks: writers of a segment are counted, whoever empties it has it for himself */
byte writers[SEGMENTS];
bool exclusive[SEGMENTS];

byte boot;
byte ended;						/* producers */
byte locked = LOCKED;

#define UNLESS_CRASH unless { boot != my_boot -> my_boot = boot }

proctype producer(byte first; byte count) {
	byte my_boot = boot, n = 0, s;

begin:
	{
		do
		:: n == count -> break
		:: n < count ->
			d_step { n++; s = current };	/* a transaction that a crash ends is not tried again */
again:
#ifndef BY_SNAPSHOT
			s = current;
#endif
			if
			:: atomic { !exclusive[s] -> writers[s]++ }
			:: atomic { exclusive[s] && current != s -> goto again }
			fi;
#if !defined(BY_SNAPSHOT) && !defined(NO_SECOND_LOOK)
			if
			:: current != s -> writers[s]--; goto again
			:: else
			fi;
#endif
			d_step {
				clock++;		/* the id */
				rows[s] = rows[s] | (1 << (first + n - 1));
				newest[s] = clock
			};
			if
			:: committed = committed | (1 << (first + n - 1))
			:: true				/* rolled back */
			fi;
			d_step { writers[s]--; s = 0 }	/* locks are released after the end is visible */
		od
	} UNLESS_CRASH;
	if
	:: n < count -> goto begin
	:: else
	fi;
	ended++
}

/* What the worker has read is `base`; that it read all of it is the assertion.  It reads under locks that keep off only who empties, so in one step. */
proctype worker() {
	byte my_boot = boot, number, snapshot, wanted, i, found;

begin:
	{
	do
		:: d_step { base != committed || seal_tick[0] > base_tick || seal_tick[1] > base_tick ->
				tick++;
				number = tick
			};
			snapshot = committed;
			d_step {
				for (i : 0 .. SEGMENTS - 1) {
					if
					:: !sealed[i] || seal_tick[i] >= base_tick + 1 -> wanted = wanted | (1 << i)
					:: else
					fi
				}
			};
			if
			:: d_step { !((wanted & 1) && exclusive[0] || (wanted & 2) && exclusive[1]) ->
					for (i : 0 .. SEGMENTS - 1) {
						if
						:: wanted & (1 << i) -> found = found | rows[i]
						:: else
						fi
					};
					assert((snapshot & ~base & ~found) == 0);	/* nothing missed */
					base = snapshot;
					base_tick = number
				}
			:: d_step { locked > 0 -> locked-- }	/* a segment is locked: this tick comes to nothing, but its number is gone */
			fi;
			d_step { number = 0; snapshot = 0; wanted = 0; found = 0; i = 0 }
		:: d_step { cursor_tick != base_tick -> cursor = base; cursor_tick = base_tick }
		od
	} UNLESS_CRASH;
	d_step { number = 0; snapshot = 0; wanted = 0; found = 0; i = 0 };
	goto begin
}

inline rotate() {
	d_step { rows[current] != 0 ->
		next = 0;
		do
		:: next < SEGMENTS && (next == current || rows[next] != 0) -> next++
		:: else -> break
		od
	};
	if
	:: next == SEGMENTS			/* none is empty: the current one grows */
	:: next < SEGMENTS ->
#ifdef PUBLISH_FIRST
		current = next;
		d_step { sealed[next] = false; seal_tick[next] = 0 }
#else
		d_step { sealed[next] = false; seal_tick[next] = 0 };
		current = next
#endif
	fi;
	next = 0
}

inline seal(s) {
#ifdef SEAL_EARLY
	d_step { s != current && !sealed[s] && writers[s] == 0 -> mark = tick };
#else
	d_step { s != current && !sealed[s] && writers[s] == 0 };	/* a ShareLock was granted, and is released */
	mark = tick + 1;
#endif
	d_step { sealed[s] = true; seal_tick[s] = (rows[s] == 0 -> 0 : mark); mark = 0 }	/* that of an empty one is of no use */
}

#ifdef UNPROVEN
#define PAST(s) (base_tick >= seal_tick[s])
#else
#define PAST(s) (cursor_tick >= seal_tick[s])
#endif

inline retire(s) {
	d_step { s != current && sealed[s] && rows[s] != 0 && PAST(s) && writers[s] == 0 -> exclusive[s] = true };
	d_step {
		assert((rows[s] & committed & ~cursor) == 0);	/* all that is removed was read */
		rows[s] = 0;
		newest[s] = 0;
		seal_tick[s] = 0;
		exclusive[s] = false
	}
}

proctype maintenance() {
	byte my_boot = boot, next, mark;

begin:
	{
	do
		:: rotate()
		:: seal(0)
		:: seal(1)
		:: retire(0)
		:: retire(1)
		od
	} UNLESS_CRASH;
	d_step { next = 0; mark = 0 };
	goto begin
}

/* Everything in memory is gone, transactions in progress are aborted, and the next start finds the floor again. */
proctype crash() {
	byte i, highest, left = CRASHES;

	do
	:: left > 0 ->
		left--;
		if
		:: d_step { ended < PRODUCERS ->
			boot++;
			highest = 0;
			current = 0;
			for (i : 0 .. SEGMENTS - 1) {
				writers[i] = 0; exclusive[i] = false;
				sealed[i] = false; seal_tick[i] = 0;
				if
				:: newest[i] > highest -> highest = newest[i]; current = i
				:: else
				fi
			};
			base = cursor;
			base_tick = cursor_tick;
#ifdef REMEMBER_SEAL
			tick = 0
#else
			tick = cursor_tick
#endif
			}
		:: true
		fi
	:: else -> break
	od
}

init {
	atomic {
		run producer(0, FIRST);
		run producer(2, 1);
		run worker();
		run maintenance();
		run crash()
	}
}
