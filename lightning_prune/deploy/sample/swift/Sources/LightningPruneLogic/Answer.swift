import Foundation

/// The class with the largest score, its name and its share of the softmax.
public struct Answer: Equatable, Sendable {
  public let index: Int
  public let label: String
  public let confidence: Float

  /// The answer for the first image of an output (images, classes). A class beyond the labels is called by its number.
  public init(output: [Float], spec: TensorSpec, labels: [String]) throws {
    guard spec.shape.count == 2, spec.shape[1] > 0, spec.dtype == "float32" else {
      throw ModelError("output \(spec): this screen needs scores (images, classes) in float32")
    }
    let classes = spec.shape[1]
    guard output.count >= classes else { throw ModelError("the program gave \(output.count) scores, \(classes) expected") }
    let scores = Array(output[..<classes])
    index = try Scores.argmax(scores)
    label = index < labels.count ? labels[index] : String(index)
    confidence = try Scores.softmax(scores)[index]
  }
}

/// From the scores that a program gives to a class.
public enum Scores {
  /// exp(score - largest) / sum, computed in double precision.
  public static func softmax(_ scores: [Float]) throws -> [Float] {
    let largest = Double(scores[try argmax(scores)])
    let shares = scores.map { exp(Double($0) - largest) }
    let sum = shares.reduce(0, +)
    return shares.map { Float($0 / sum) }
  }

  /// The position of the largest score, the first one of equals.
  public static func argmax(_ scores: [Float]) throws -> Int {
    guard !scores.isEmpty else { throw ModelError("the program gave no scores") }
    var best = 0
    for (i, score) in scores.enumerated() {
      guard score.isFinite else { throw ModelError("the program gave \(score) as a score") }
      if score > scores[best] { best = i }
    }
    return best
  }
}
