// Graphile Worker's parts: `node graphile.mjs VARIANT PART JSON`, with its packages under NODE_PATH.
// As `benchmarks.child`: the end of standard input asks it to stop, and what came out is printed as a line of JSON.
import fs from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.NODE_PATH}/`);
const worker = require("graphile-worker");
const pg = require("pg");

const [variant, part, json] = process.argv.slice(2);
const options = JSON.parse(json);
const logger = new worker.Logger(() => () => {});
process.env.NO_LOG_SUCCESS = "1";

const stopped = new Promise((resolve) => {
  process.stdin.on("end", resolve).resume();
});
// The clock that Python's time.monotonic reads.
const now = () => Number(process.hrtime.bigint()) / 1e9;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function pool(max) {
  const given = Object.fromEntries(
    [...options.dsn.matchAll(/(\w+)=('(?:[^'\\]|\\.)*'|\S+)/g)].map(([, key, value]) => [
      key,
      value.startsWith("'") ? value.slice(1, -1).replace(/\\(.)/g, "$1") : value,
    ]),
  );
  const { host, port, user, password, dbname } = given;
  const made = new pg.Pool({ host, port: port && +port, user, password, database: dbname, max });
  made.on("error", () => {});
  made.on("connect", (client) => client.on("error", () => {}));
  return made;
}

// The same file as `benchmarks.load.Tally`: count, first, last, latencies' count, latencies.
class Tally {
  constructor(path) {
    this.file = fs.openSync(path, "r+");
    this.head = Buffer.alloc(32);
    fs.readSync(this.file, this.head, 0, 32, 0);
    this.timer = null;
  }
  tick(sentAt) {
    const at = now();
    const count = this.head.readBigInt64LE(0);
    if (!count) this.head.writeDoubleLE(at, 8);
    this.head.writeDoubleLE(at, 16);
    this.head.writeBigInt64LE(count + 1n, 0);
    if (sentAt) {
      const known = this.head.readBigInt64LE(24);
      const sample = Buffer.alloc(8);
      sample.writeDoubleLE(at - sentAt);
      fs.writeSync(this.file, sample, 0, 8, 32 + 8 * Number(known));
      this.head.writeBigInt64LE(known + 1n, 24);
      this.write();
    } else {
      this.timer ??= setTimeout(() => this.write(), 5);
    }
  }
  write() {
    clearTimeout(this.timer);
    this.timer = null;
    fs.writeSync(this.file, this.head, 0, 32, 0);
  }
  get started() {
    const count = Buffer.alloc(8);
    fs.readSync(this.file, count, 0, 8, 24);
    return count.readBigInt64LE(0);
  }
}

async function timed(count, connections, one) {
  let given = 0;
  const begin = now();
  await Promise.all(
    Array.from({ length: connections }, async () => {
      while (given < count) {
        given += 1;
        await one();
      }
    }),
  );
  return now() - begin;
}

const utilities = (max) => worker.makeWorkerUtils({ pgPool: pool(max), logger });

const parts = {
  async install() {
    await worker.runMigrations({ pgPool: pool(1), logger });
    const utils = await utilities(1);
    await utils.addJob("noop", {}); // so that the task has a number
    await (await utils.withPgClient((client) => client.query("delete from graphile_worker._private_jobs")));
    return null;
  },
  async work() {
    const tally = new Tally(options.tally);
    // `batched` is what its own performance test uses.
    const batched = { localQueue: { size: 500, refetchDelay: { durationMs: 10 } }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };
    const runner = await worker.run({
      pgPool: pool(Math.min(options.concurrency + 2, 60)),
      concurrency: options.concurrency,
      noHandleSignals: true,
      logger,
      preset: { worker: variant === "batched" ? batched : {} },
      taskList: { noop: async (payload) => tally.tick(payload?.t) },
    });
    await stopped;
    await runner.stop();
    tally.write();
    return null;
  },
  async defer() {
    const utils = await utilities(options.connections);
    return timed(options.count, options.connections, () => utils.addJob("noop", {}));
  },
  async bulk() {
    const utils = await utilities(1);
    const jobs = Array.from({ length: options.size }, () => ({ identifier: "noop", payload: {} }));
    return timed(Math.floor(options.count / options.size), 1, () => utils.addJobs(jobs));
  },
  async ping() {
    const utils = await utilities(1);
    const tally = new Tally(options.tally);
    for (let i = 0; i < options.count; i += 1) {
      const seen = tally.started;
      const begin = now();
      await utils.addJob("noop", { t: begin });
      while (tally.started === seen && now() - begin < 30) await pause(1);
      await pause(10 + 20 * Math.random());
    }
    return null;
  },
};

const before = process.cpuUsage();
const value = await parts[part]();
const { user, system } = process.cpuUsage(before);
console.log(JSON.stringify({ value, cpu: (user + system) / 1e6 }));
process.exit(0);
