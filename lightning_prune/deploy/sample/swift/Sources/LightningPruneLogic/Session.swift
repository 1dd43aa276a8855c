import Foundation

/// Calls of a program in a row: what it gives for the next call goes into it.
///
/// A call that is refused or fails changes nothing: the next one goes on from the one before. Only what the program keeps
/// in itself, `keeps`, may be half written then, and such a session asks for `reset` first. Calls have an order: a second
/// thread in a call is refused, and the first goes on. Everything that can be wrong is a `ModelError`.
public final class Session {
  /// Takes the values and the shapes of all inputs, and returns the values of all outputs.
  public typealias Run = ([[Float]], [[Int]]) throws -> [[Float]]

  private let spec: MethodSpec
  private let own: [TensorSpec]
  private let keeps: [String]
  private let restart: () throws -> Void
  private let run: Run
  private let busy = NSLock()
  private var isLost = false
  private var written = 0
  private var last: Int?
  private var fed: [String: [Float]] = [:]

  /// - Parameters:
  ///   - keeps: names of what the program keeps in itself.
  ///   - restart: lets that be what it was at first.
  public init(_ spec: MethodSpec, keeps: [String] = [], restart: @escaping () throws -> Void = {}, run: @escaping Run) throws {
    self.spec = spec
    self.keeps = keeps
    self.restart = restart
    self.run = run
    own = spec.inputs.filter { input in !spec.feeds.contains { $0.input == input.name } }
    fed = try begun([:])
  }

  /// What the next step takes from the ones before, by the name of the input; `reset` goes on from it.
  public func state() throws -> [String: [Float]] {
    try alone { fed }
  }

  /// Makes a call with the inputs that are not fed, in order, and returns all outputs; `shapes` as in `run`.
  public func step(_ inputs: [[Float]], shapes: [[Int]]? = nil) throws -> [[Float]] {
    try alone { try taken(inputs, shapes) }
  }

  /// Begins anew, with these values of fed inputs, such as an earlier `state`; any other as the manifest says.
  public func reset(_ first: [String: [Float]] = [:]) throws {
    let values = try begun(first)
    try alone {
      try restart()
      fed = values
      isLost = false
      written = 0
      last = nil
    }
  }

  /// Goes on writing after `prompt`, the likeliest token each time, until `max` tokens are written, one of `stop` is, or
  /// the program has no place left. `each` is told every token at once. A text goes on with the next prompt; `reset`
  /// begins another one. For programs that take tokens (1, n) and their positions (n), and give what follows the last.
  public func generate(_ prompt: [Int], max: Int, stop: Set<Int> = [], each: (Int) -> Void = { _ in }) throws -> [Int] {
    try alone {
      guard own.map(\.shape.count) == [2, 1], own.allSatisfy({ $0.dtype == "int64" }),
        let width = spec.outputs.first?.shape.last
      else {
        throw ModelError("the program takes \(own): it does not write text from tokens and positions")
      }
      guard !prompt.isEmpty, max >= 1 else { throw ModelError("a prompt of \(prompt.count) tokens, and \(max) to write") }
      let places = own[0].dynamic[1]?.upperBound ?? own[0].shape[1]
      var given = (last.map { [$0] } ?? []) + prompt
      guard written + given.count <= places else {
        throw ModelError(
          "the prompt has \(given.count) tokens, and \(places - written) of \(places) places are left: shorten it, or"
            + " reset the session")
      }
      var tokens: [Int] = []
      repeat {
        let positions = given.indices.map { Float(written + $0) }
        let logits = try taken([given.map { Float($0) }, positions], [[1, given.count], [given.count]])[0]
        written += given.count
        let next = try Scores.argmax(Array(logits.suffix(width)))
        tokens.append(next)
        last = next
        each(next)
        given = [next]
      } while !stop.contains(tokens[tokens.count - 1]) && tokens.count < max && written < places
      return tokens
    }
  }

  private func taken(_ inputs: [[Float]], _ shapes: [[Int]]?) throws -> [[Float]] {
    guard inputs.count == own.count, shapes == nil || shapes?.count == own.count else {
      throw ModelError("a step takes \(own); got \(inputs.count) inputs")
    }
    var values = fed
    var sizes: [String: [Int]] = [:]
    for (index, one) in own.enumerated() {
      values[one.name] = inputs[index]
      sizes[one.name] = shapes?[index] ?? one.shape
      try one.check(inputs[index].count, sizes[one.name] ?? [])
    }
    guard !isLost else {
      throw ModelError(
        "the step before failed, and what the program keeps (\(keeps.joined(separator: ", "))) is lost: reset")
    }
    isLost = !keeps.isEmpty
    let outputs = try run(spec.inputs.map { values[$0.name] ?? [] }, spec.inputs.map { sizes[$0.name] ?? $0.shape })
    guard outputs.count == spec.outputs.count else { throw ModelError("the program gave \(outputs.count) outputs") }
    var next: [String: [Float]] = [:]
    for feed in spec.feeds {
      guard let place = spec.outputs.firstIndex(where: { $0.name == feed.output }),
        outputs[place].count == fed[feed.input]?.count
      else { throw ModelError("\(feed.output) is not what \(feed.input) takes") }
      next[feed.input] = outputs[place]
    }
    fed = next
    isLost = false
    return outputs
  }

  private func begun(_ first: [String: [Float]]) throws -> [String: [Float]] {
    let names = spec.feeds.map(\.input)
    if let unknown = first.keys.first(where: { !names.contains($0) }) {
      throw ModelError("there is no fed input \(unknown); there is \(names)")
    }
    var values: [String: [Float]] = [:]
    for feed in spec.feeds {
      guard let input = spec.inputs.first(where: { $0.name == feed.input }) else {
        throw ModelError("the program has no input \(feed.input)")
      }
      let given = first[feed.input] ?? [Float](repeating: feed.first, count: input.shape.reduce(1, *))
      try input.check(given.count, input.shape)
      values[feed.input] = given
    }
    return values
  }

  private func alone<T>(_ call: () throws -> T) throws -> T {
    guard busy.try() else {
      throw ModelError("another thread is in a call of this session: make calls from one thread, or give each its own")
    }
    defer { busy.unlock() }
    return try call()
  }
}
