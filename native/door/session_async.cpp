// Submitted operations: one thread reads for everybody, `workers` threads take the steps, completions go out by eventfd. Steps of
// small ones are taken by who submits and who reads, as long as nothing has to be waited for: four lookups in other nodes are eight
// wakes fewer.
#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <utility>

#include "base/clock.hpp"
#include "session_impl.hpp"

namespace kvstore::door {

void Session::Impl::start_threads() {
  if (!threads.empty()) return;
  channel->dedicate();
  threads.emplace_back([this] { read_for_all(); });
  for (std::uint32_t i = 0; i < config.workers; ++i) threads.emplace_back([this] { work(); });
}

void Session::Impl::stop_threads() {
  std::vector<std::thread> ending;
  {
    std::lock_guard lock(jobs_mutex);
    stopping = true;
    jobs_changed.notify_all();
    ending.swap(threads);
  }
  for (std::thread& thread : ending) thread.join();
  std::unique_lock lock(jobs_mutex);
  std::vector<std::shared_ptr<Job>> left;
  for (const auto& [token, job] : jobs) left.push_back(job);
  for (const auto& job : left) give_up(lock, job, Status::kUnavailable);
}

void Session::Impl::read_for_all() {
  for (;;) {
    {
      std::unique_lock lock(jobs_mutex);
      if (stopping) return;
      // Broken: nothing comes any more, but what was submitted meanwhile must end.
      if (channel->broken()) jobs_changed.wait_for(lock, std::chrono::nanoseconds(Channel::kSlice));
    }
    if (!channel->broken()) channel->read_slice();
    sweep(monotonic_now());
  }
}

// Ends those that wait past their deadline, for a node that is gone, or though they were cancelled.
void Session::Impl::sweep(Nanos now) {
  std::unique_lock lock(jobs_mutex);
  std::vector<std::pair<std::shared_ptr<Job>, Status>> over;
  const bool gone = channel->broken();
  for (const auto& [token, job] : jobs) {
    if (job->state != Job::State::kWaiting) continue;
    if (gone) over.emplace_back(job, Status::kUnavailable);
    else if (job->deadline <= now) over.emplace_back(job, Status::kLate);
  }
  for (const auto& [job, status] : over) give_up(lock, job, status);
}

void Session::Impl::work() {
  std::unique_lock lock(jobs_mutex);
  for (;;) {
    jobs_changed.wait(lock, [this] { return stopping || !queue.empty(); });
    if (stopping) return;
    const std::shared_ptr<Job> job = std::move(queue.front());
    queue.pop_front();
    if (job->state != Job::State::kQueued) continue;  // given up meanwhile
    job->state = Job::State::kRunning;
    advance(lock, job);
  }
}

// Takes the steps that can be taken now. Holds the lock on entry and return, and not while it works.
void Session::Impl::advance(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Job>& job, bool at_once) {
  lock.unlock();
  Operation& operation = *job->operation;
  Link to = link(job->deadline);
  FrameWriter request;
  std::optional<Operation::Next> next;  // none: its answer has not come
  Answer answer;
  if (job->request == 0) {
    next = operation.cancelled ? Operation::Next::kDone : operation.step(to, nullptr, request);
    if (operation.cancelled) operation.result.status = Status::kCancelled;
  } else if (channel->take(job->request, answer)) {
    if (answer.header.status == Status::kOk) {
      next = operation.step(to, &answer, request);
    } else {
      take_error(answer, operation.result);
      operation.refused(to);
      next = Operation::Next::kDone;
    }
  }
  if (next == Operation::Next::kAsk && too_large(request, info, operation.result)) {
    operation.refused(to);
    next = Operation::Next::kDone;
  }
  if (next == Operation::Next::kAsk) {
    const std::uint64_t id = channel->open([this, weak = std::weak_ptr<Job>(job)] { answer_came(weak); });
    std::memcpy(request.bytes.data() + offsetof(FrameHeader, request), &id, sizeof id);
    job->request = id;
    const Status status = at_once ? channel->send_at_once(request.bytes) : channel->send(request.bytes, job->deadline);
    if (at_once && status == Status::kLate) channel->abandon(id);
    lock.lock();
    if (at_once && status == Status::kLate) {
      job->request = 0;  // from the beginning
      return enqueue(job);
    }
    if (status != Status::kOk) return give_up(lock, job, status);
    if (at_once && channel->waiting()) return enqueue(job);  // there is a rest to flush
  } else {
    if (!at_once) channel->flush(job->deadline);
    lock.lock();
    if (next == Operation::Next::kDone) return complete(job);
  }
  if (job->answered || channel->has(job->request)) {
    job->answered = false;
    enqueue(job);
  } else if (operation.cancelled) {
    give_up(lock, job, Status::kCancelled);
  } else {
    job->state = Job::State::kWaiting;
  }
}

void Session::Impl::enqueue(const std::shared_ptr<Job>& job) {
  job->state = Job::State::kQueued;
  queue.push_back(job);
  jobs_changed.notify_one();
}

void Session::Impl::answer_came(const std::weak_ptr<Job>& weak) {
  const std::shared_ptr<Job> job = weak.lock();
  if (!job) return;
  std::unique_lock lock(jobs_mutex);
  if (job->state == Job::State::kRunning) job->answered = true;
  if (job->state != Job::State::kWaiting) return;
  if (!channel->has(job->request)) return;  // broken: the sweep ends it
  if (!job->operation->small()) return enqueue(job);
  job->state = Job::State::kRunning;
  advance(lock, job, true);
}

void Session::Impl::complete(const std::shared_ptr<Job>& job) {
  job->state = Job::State::kDone;
  job->operation->result.token = job->token;
  completions.push_back(std::move(job->operation->result));
  jobs.erase(job->token);
  if (completions.size() > 1) return;  // nobody has taken the one before, of which the eventfd speaks
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(completion_event, &one, sizeof one);
}

void Session::Impl::give_up(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Job>& job, Status status) {
  if (job->state == Job::State::kDone) return;
  job->state = Job::State::kDone;
  lock.unlock();
  channel->abandon(job->request);
  Result& result = job->operation->result;
  result.status = status;
  if (status == Status::kLate) result.reason = "the deadline passed";
  if (status == Status::kUnavailable) result.reason = "the node is gone, or the session is closed";
  Link to = link(job->deadline);
  job->operation->refused(to);
  channel->flush(monotonic_now() + Channel::kSlice);
  lock.lock();
  complete(job);
}

void Session::submit(std::uint64_t token, std::unique_ptr<Operation> operation, Nanos deadline) {
  auto job = std::make_shared<Job>();
  job->token = token;
  job->operation = std::move(operation);
  job->deadline = deadline;
  Impl& self = *impl_;
  struct Inside {  // close() waits for it: a small one is begun in this thread
    Impl& of;
    const bool is = of.enter();
    ~Inside() {
      if (is) of.leave();
    }
  } const inside{self};
  std::unique_lock lock(self.jobs_mutex);
  if (self.jobs.contains(token)) throw std::invalid_argument("token: in flight already");
  self.jobs.emplace(token, job);
  if (!inside.is || self.stopping || self.channel->broken()) return self.give_up(lock, job, Status::kUnavailable);
  self.start_threads();
  if (!job->operation->small()) return self.enqueue(job);
  job->state = Job::State::kRunning;
  self.advance(lock, job, true);
}

void Session::cancel(std::uint64_t token) {
  std::unique_lock lock(impl_->jobs_mutex);
  const auto found = impl_->jobs.find(token);
  if (found == impl_->jobs.end()) return;
  const std::shared_ptr<Job> job = found->second;
  job->operation->cancelled = true;
  // Between steps nothing touches memory; within one, the operation looks at `cancelled` between blocks.
  if (job->state == Job::State::kWaiting) impl_->give_up(lock, job, Status::kCancelled);
}

int Session::completion_fd() const noexcept { return impl_->completion_event; }

std::vector<Result> Session::take_completions() {
  std::lock_guard lock(impl_->jobs_mutex);
  std::uint64_t count = 0;
  [[maybe_unused]] const auto drained = ::read(impl_->completion_event, &count, sizeof count);
  return std::exchange(impl_->completions, {});
}

}  // namespace kvstore::door
