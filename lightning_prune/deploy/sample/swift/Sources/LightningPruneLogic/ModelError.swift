import Foundation

/// What is wrong with a file, an input or an output, in words that can be shown.
public struct ModelError: LocalizedError, Equatable, Sendable {
  public let message: String

  public init(_ message: String) {
    self.message = message
  }

  public var errorDescription: String? { message }
}
