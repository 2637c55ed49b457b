/*
 * What a tick makes durable, what is sent, and where the worker goes on after a crash (src/delivery/tick.c, recorder.c, cursors.c).
 *
 * Producers commit asynchronously: an event is visible before its commit is on disk; ids are taken before, so they are not in the order of commits.  The worker takes a tick,
 * flushes, sends what the tick sees and the one before did not, in the order of ids; an attempt may fail.  A checkpoint writes the cursor and a row for each event that the
 * cursor passes but that is not delivered, in one transaction.  The server may crash at any time and loses what was not flushed.
 * Sets of events are bits of a byte; bit n has the n-th id.
 *
 * Claims: whatever was sent exists after every crash; every event that exists is delivered in the end.
 *
 * Without one of these a claim fails:
 *   SEND_FIRST    events are sent before the tick is flushed
 *   LAST_ID       the cursor is the last id that was sent: late commits are skipped
 *   CURSOR_FIRST  the cursor passes an event in flight without a row
 */
#define EVENTS 3
#define ALL 7

/* the server */
byte visible;					/* committed, as a snapshot sees it */
byte durable;					/* of them, on disk */
byte ended;						/* producers */
bool crashed;

/* on disk: base, the tick up to which it is reading, the last id done in it; rows of what was passed over */
byte d_base, d_upper, d_after, d_rows;

/* the world */
byte sent, delivered;

/* the worker: events of the window up to `after` are done or in `failed` */
byte base, upper, after, failed;

#define WINDOW (upper & ~base)
#define BELOW(n) ((1 << (n)) - 1)

proctype producer(byte event) {
	if
	:: visible = visible | (1 << event)
	:: true						/* rolled back, or never finished */
	fi;
	ended++
}

/* Other commits, the WAL writer, a checkpoint of the server: all that is visible may be on disk at any time. */
proctype wal_writer() {
	do
	:: d_step { durable != visible -> durable = visible }
	:: ended == EVENTS && durable == visible -> break
	od
}

inline attempt(event) {
	sent = sent | (1 << event);
	if
	:: delivered = delivered | (1 << event); failed = failed & ~(1 << event)
	:: failed = failed | (1 << event)	/* it will be tried again */
	fi
}

/* The cursor with its rows: one synchronous commit, which flushes what was committed before it. */
inline checkpoint() {
	d_step {
		durable = visible;
		d_base = base;
		d_upper = upper;
		d_after = after;
#ifndef CURSOR_FIRST
		d_rows = failed
#endif
	}
}

proctype worker() {
	do
	:: d_step { after == EVENTS && visible & ~upper ->
			base = upper;
			upper = visible;
			after = 0
		};
#ifdef LAST_ID
		base = base | BELOW(sent >= 4 -> 3 : (sent >= 2 -> 2 : sent));
#endif
#ifndef SEND_FIRST
		durable = visible
#endif
	:: after < EVENTS && (WINDOW & (1 << after)) ->
		attempt(after);
		after++
	:: after < EVENTS && !(WINDOW & (1 << after)) ->
		after++
	:: failed & 1 -> attempt(0)
	:: failed & 2 -> attempt(1)
	:: failed & 4 -> attempt(2)
	:: d_base != base || d_upper != upper || d_after != after || d_rows != failed -> checkpoint()
	:: atomic { !crashed ->
			crashed = true;
			assert((sent & ~durable) == 0);		/* no phantom */
			visible = durable;
			base = d_base;
			upper = d_upper;
			after = d_after;
			failed = d_rows
		}
	:: ended == EVENTS && upper == visible && after == EVENTS && failed == 0 -> break
	od;
	assert((visible & ~delivered) == 0)			/* no loss */
}

init {
	after = EVENTS;
	d_after = EVENTS;
	atomic {
		run producer(0);
		run producer(1);
		run producer(2);
		run wal_writer();
		run worker()
	}
}
