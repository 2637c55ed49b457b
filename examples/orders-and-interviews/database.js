// What both services do with PostgreSQL. Where it is, node-postgres reads from PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE.
const { Pool } = require('pg');

const pool = new Pool();

// A connection that breaks fails the query that uses it, and says so here too. Without listeners that would end the process.
const complain = (error) => console.error(`database: ${error.message}`);
pool.on('error', complain);
pool.on('connect', (client) => client.on('error', complain));

// Runs `work` in a transaction: resolves when that is committed, and rejects with the error if it is not.
// If the connection is lost during COMMIT, nobody knows which it was: so whatever calls this must be able to call it again.
async function transaction(work) {
  const client = await pool.connect();
  let failure;
  try {
    await client.query('BEGIN');
    const result = await work(client);
    const { command } = await client.query('COMMIT');
    if (command !== 'COMMIT') throw new Error('rolled back'); // what COMMIT does after an error that `work` has swallowed
    return result;
  } catch (error) {
    failure = error;
    throw error;
  } finally {
    client.release(failure); // after a failure the connection is closed, which rolls back
  }
}

module.exports = { pool, transaction };
